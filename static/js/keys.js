// The keyboard. Never while somebody is typing.
const help = document.getElementById("keys");
let leader = 0;

const press = (selector) => document.querySelector(selector)?.click();
const seen = (element) => element?.checkVisibility() ?? false;

/** A part of the card that has the focus. Without one a key decides nothing, however it came. */
function ofCard(part) {
  const card = document.activeElement.closest('.card[data-state="pending"]');
  const found = card?.querySelector(part);
  return seen(found) ? found : null;
}

function move(step) {
  const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);
  const cards = all('#approvals .card, .card[data-state="pending"]');
  const inRail = document.activeElement.closest("#rail");
  const list = cards.length && !inRail ? cards : all("#rail-lists .row");
  const at = list.findIndex((thing) => thing.contains(document.activeElement));
  const current = list.findIndex((thing) => thing.getAttribute("aria-current"));
  list[Math.max(0, Math.min(list.length - 1, (at < 0 ? current : at) + step))]?.focus();
}

const KEYS = {
  n: () => press('[data-key="n"]'),
  "/": () => document.getElementById("search")?.focus(),
  j: () => move(1),
  k: () => move(-1),
  a: () => (Date.now() < leader ? press('[data-key="g a"]') : ofCard('button[value="approve"]')?.click()),
  r: () => ofCard("input.reason")?.focus(),
  ".": () => press("#session-header .cancel button:not([disabled])"),
  "?": () => help.showModal(),
  g: () => (leader = Date.now() + 1000),
};

function leave(field) {
  if (field.type === "search" && field.value) {
    field.value = "";
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  field.blur();
}

document.addEventListener("click", ({ target }) => {
  if (target.closest?.("[data-keys]")) help.showModal();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || help.open) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) {
    if (event.key === "Escape" && !event.isComposing) leave(event.target);
    return;
  }
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
  if (event.key !== "g") leader = 0;
});
