// The keyboard. Never while somebody is typing.
const help = document.getElementById("keys");
let leader = 0;

const press = (selector) => document.querySelector(selector)?.click();
const seen = (element) => element?.checkVisibility() ?? false;

function onScreen(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

/** The card a decision is about: the focused one, or the only open one in view. */
function card() {
  const focused = document.activeElement.closest(".card");
  if (focused) return focused.dataset.state === "pending" ? focused : null;
  const open = [...document.querySelectorAll('.card[data-state="pending"]')].filter(onScreen);
  return open.length === 1 ? open[0] : null;
}

function decide(verdict) {
  const button = card()?.querySelector(`button[value="${verdict}"]`);
  if (seen(button)) button.click();
}

function move(step) {
  const things = [...document.querySelectorAll("#approvals .card, #rail-lists .row")].filter(seen);
  const cards = things.filter((thing) => thing.matches(".card"));
  const list = cards.length ? cards : things;
  const at = list.findIndex((thing) => thing.contains(document.activeElement));
  const current = list.findIndex((thing) => thing.getAttribute("aria-current"));
  list[Math.max(0, Math.min(list.length - 1, (at < 0 ? current : at) + step))]?.focus();
}

const KEYS = {
  n: () => press('[data-key="n"]'),
  "/": () => document.getElementById("search")?.focus(),
  j: () => move(1),
  k: () => move(-1),
  a: () => (Date.now() < leader ? press('[data-key="g a"]') : decide("approve")),
  r: () => decide("reject"),
  ".": () => press("#session-header .cancel button:not([disabled])"),
  "?": () => help.showModal(),
  g: () => (leader = Date.now() + 1000),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || help.open) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
  if (event.key !== "g") leader = 0;
});
