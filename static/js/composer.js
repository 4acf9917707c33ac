// The composer: Enter sends, the text grows its box, and nothing typed is lost.
const area = () => document.getElementById("instruction");
const key = (form) => `draft:${form.dataset.draft}`;
const coarse = matchMedia("(pointer: coarse)");
let sent = null;

function grow(box) {
  if (CSS.supports("field-sizing", "content")) return;
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

function restore() {
  const box = area();
  if (!box) return;
  // A first instruction that led to a session's page was taken.
  if (box.form.dataset.draft !== "new" && sessionStorage.getItem("sent-new")) {
    localStorage.removeItem("draft:new");
  }
  sessionStorage.removeItem("sent-new");
  if (!box.value) box.value = localStorage.getItem(key(box.form)) ?? "";
  grow(box);
}

document.addEventListener("input", ({ target }) => {
  if (target.id !== "instruction") return;
  if (target.value) localStorage.setItem(key(target.form), target.value);
  else localStorage.removeItem(key(target.form));
  grow(target);
});

document.addEventListener("keydown", (event) => {
  const { target } = event;
  if (target.id !== "instruction" || event.key !== "Enter") return;
  if (event.shiftKey || event.isComposing || coarse.matches) return;
  event.preventDefault();
  target.form.requestSubmit();
});

document.addEventListener("submit", ({ target }) => {
  if (target.dataset.draft === "new") sessionStorage.setItem("sent-new", "1");
});

document.addEventListener("htmx:beforeRequest", ({ target }) => {
  if (target.matches(".composer")) sent = area().value;
});

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (detail.target.id !== "composer" || !detail.shouldSwap) return;
  const typed = area().value;
  const taken = detail.xhr.status === 200;
  if (taken) localStorage.removeItem(key(area().form));
  const swapped = () => {
    // What was typed while the request was under way.
    if (typed !== sent) area().value = taken && typed.startsWith(sent) ? typed.slice(sent.length) : typed;
    if (!coarse.matches) area().focus({ preventScroll: true });
    grow(area());
  };
  document.addEventListener("htmx:afterSwap", swapped, { once: true });
});

addEventListener("pageshow", (event) => {
  const [visit] = performance.getEntriesByType("navigation");
  if (!event.persisted && visit?.type !== "back_forward") return;
  // Coming back is a new intention: the same form again is not a double click.
  for (const input of document.querySelectorAll('input[name="submission"]')) {
    input.value = crypto.getRandomValues(new Uint32Array(4)).join("");
  }
});

restore();
