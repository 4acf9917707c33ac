// A button on each block of code that copies it.
const BLOCKS = ".prose pre, pre.source, pre.action, pre.code";

function add(block) {
  if (block.querySelector(":scope > .copy")) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  block.append(button);
}

function refresh() {
  if (navigator.clipboard) document.querySelectorAll(BLOCKS).forEach(add);
}

document.addEventListener("click", async ({ target }) => {
  if (!target.matches?.("button.copy")) return;
  const block = target.parentElement.cloneNode(true);
  block.querySelector(".copy").remove();
  try {
    await navigator.clipboard.writeText(block.textContent);
    target.textContent = "Copied";
  } catch {
    target.textContent = "Select it, and copy with the keyboard";
  }
  setTimeout(() => (target.textContent = "Copy"), 1500);
});

document.addEventListener("htmx:afterSettle", refresh);
document.addEventListener("htmx:wsAfterMessage", refresh);
refresh();
