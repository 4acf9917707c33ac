// What needs this person, counted in the title and beside the links; and the state, said once.
const plain = document.title.trim();
const announcement = document.getElementById("announcement");
const state = () => document.getElementById("session-state")?.textContent ?? "";
let said = state();

function refresh() {
  const needs = Number(document.getElementById("rail-lists")?.dataset.needs ?? 0);
  document.title = needs ? `(${needs}) ${plain}` : plain;
  for (const count of document.querySelectorAll("[data-needs-count]")) {
    count.textContent = needs;
    count.hidden = !needs;
  }
  if (state() !== said) {
    said = state();
    announcement.textContent = said;
  }
}

document.addEventListener("htmx:afterSettle", refresh);
document.addEventListener("htmx:wsAfterMessage", refresh);
refresh();
