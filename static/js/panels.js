// What opens over the page closes when something else is pressed.
document.addEventListener("click", ({ target }) => {
  for (const open of document.querySelectorAll("details[data-light][open]")) {
    if (!open.contains(target)) open.open = false;
  }
});
document.addEventListener("keydown", ({ key, target }) => {
  const open = key === "Escape" && target.closest?.("details[data-light][open]");
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});

// The inspector can be put away where it stands beside the timeline; the choice is remembered.
import { lasting } from "./store.js";

const wide = matchMedia("(min-width: 72rem)");
const toggle = document.querySelector(".open-inspector");
const put = (away) => document.body.toggleAttribute("data-inspector-away", away);

if (toggle) {
  put(lasting.get("inspector") === "away");
  toggle.addEventListener("click", (event) => {
    if (!wide.matches) return;
    event.preventDefault();
    const away = !document.body.hasAttribute("data-inspector-away");
    put(away);
    lasting.set("inspector", away ? "away" : "here");
  });
}
