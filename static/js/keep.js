// A row that is replaced keeps what its reader did with it: opened, typed, focused.
let focused = null;

document.addEventListener(
  "click",
  ({ target }) => {
    const details = target.closest?.("summary")?.parentElement;
    if (details) details.dataset.touched = "";
  },
  true,
);

document.addEventListener("htmx:oobBeforeSwap", ({ detail: { target, fragment } }) => {
  const twin = (element) => fragment.querySelector(`#${CSS.escape(element.id)}`);
  for (const details of target.querySelectorAll("details[id][data-touched]")) {
    const other = twin(details);
    if (!other) continue;
    other.open = details.open;
    other.dataset.touched = "";
  }
  for (const input of target.querySelectorAll("input.reason")) {
    const other = twin(input);
    if (other) other.value = input.value;
  }
  if (target.contains(document.activeElement)) focused = document.activeElement.id;
});

document.addEventListener("htmx:wsAfterMessage", () => {
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  focused = null;
});
