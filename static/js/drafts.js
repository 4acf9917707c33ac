// Nothing typed is lost: what is not sent yet is kept, and what was sent does not come back.
import { lasting, passing } from "./store.js";

const NEW = "draft:new";
const key = (box) => `draft:${box.form.dataset.draft}`;

export const keep = (box) => lasting.set(key(box), box.value);
export const kept = (box) => lasting.get(key(box));
export const drop = (box) => lasting.set(key(box), "");

export function restore(box) {
  if (key(box) !== NEW) {
    // A first instruction that led to a session's page was taken.
    const taken = passing.get("sent-new");
    if (taken) {
      lasting.set(NEW, "");
      passing.set("taken-new", taken);
    }
  }
  passing.set("sent-new", "");
  if (!box.value) box.value = lasting.get(key(box)) ?? "";
}

document.addEventListener("submit", ({ target }) => {
  const box = target.querySelector("#instruction");
  if (box && key(box) === NEW) passing.set("sent-new", box.value);
});

addEventListener("pageshow", (event) => {
  const [visit] = performance.getEntriesByType("navigation");
  if (!event.persisted && visit?.type !== "back_forward") return;
  // Coming back is a new intention: the same form again is not a double click.
  for (const input of document.querySelectorAll('input[name="submission"]')) {
    input.value = crypto.getRandomValues(new Uint32Array(4)).join("");
  }
  // And the browser has put back what was taken.
  const box = document.getElementById("instruction");
  if (!box?.value || key(box) !== NEW || box.value !== passing.get("taken-new")) return;
  box.value = "";
  drop(box);
});
