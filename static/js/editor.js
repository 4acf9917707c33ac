// The editor of a queued turn, and what is offered to its author only.
import { grow } from "./composer.js";
import { drop, kept } from "./drafts.js";

const place = document.getElementById("turn-editor");
const box = () => place.querySelector("textarea");

function offer() {
  for (const part of document.querySelectorAll("[data-author]")) {
    part.hidden = part.dataset.author !== document.body.dataset.person;
  }
}

function close() {
  place.replaceChildren();
  document.getElementById("instruction")?.focus({ preventScroll: true });
}

function opened() {
  box().value = kept(box()) || box().value;
  grow(box());
  box().focus();
}

function swapping({ detail }) {
  if (detail.target !== place || !detail.shouldSwap) return;
  const { status } = detail.xhr;
  const asked = detail.requestConfig.verb === "get";
  if (!asked && status === 200) drop(box());
  document.addEventListener("htmx:afterSwap", () => (box() ? opened() : close()), { once: true });
}

if (place) {
  document.addEventListener("htmx:beforeSwap", swapping);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-close-editor]")) return;
    event.preventDefault();
    drop(box());
    close();
  });
  document.addEventListener("htmx:afterSettle", offer);
  document.addEventListener("htmx:wsAfterMessage", offer);
  offer();
}
