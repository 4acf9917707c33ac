// The composer: Enter sends, the text grows its box, and a session's page is ready to be typed in.
import { drop, keep, restore } from "./drafts.js";

const area = () => document.getElementById("instruction");
const coarse = matchMedia("(pointer: coarse)");
const roomy = matchMedia("(min-width: 50rem) and (pointer: fine)");
let sent = null;

export function grow(box) {
  if (CSS.supports("field-sizing", "content")) return;
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

document.addEventListener("input", ({ target }) => {
  if (target.name !== "instruction") return;
  keep(target);
  grow(target);
});

document.addEventListener("keydown", (event) => {
  const { target } = event;
  if (target.name !== "instruction" || event.key !== "Enter") return;
  if (event.shiftKey || event.isComposing || coarse.matches) return;
  event.preventDefault();
  target.form.requestSubmit();
});

document.addEventListener("htmx:beforeRequest", ({ target }) => {
  if (target.matches(".composer")) sent = area().value;
});

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (detail.target.id !== "composer" || !detail.shouldSwap) return;
  const typed = area().value;
  const taken = detail.xhr.status === 200;
  if (taken) drop(area());
  const swapped = () => {
    // What was typed while the request was under way.
    if (typed !== sent) area().value = taken && typed.startsWith(sent) ? typed.slice(sent.length) : typed;
    if (!coarse.matches) area().focus({ preventScroll: true });
    grow(area());
  };
  document.addEventListener("htmx:afterSwap", swapped, { once: true });
});

// An interruption is meant for the turn that was open when it was chosen.
const openTurn = () => document.getElementById("composer-state")?.dataset.open;
let meant = openTurn();
document.addEventListener("htmx:wsAfterMessage", () => {
  if (openTurn() === meant) return;
  meant = openTurn();
  const queue = document.querySelector('.when-busy input[value="queue"]');
  if (queue) queue.checked = true;
});

const box = area();
if (box) {
  restore(box);
  grow(box);
  // In a session, keys are words. The first screen has more to choose from.
  const first = document.body.classList.contains("home");
  const idle = document.activeElement === document.body;
  if (!first && idle && roomy.matches) box.focus({ preventScroll: true });
}
