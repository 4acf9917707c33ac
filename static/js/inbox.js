// Refreshes the inbox without moving what somebody is about to click: new rows come below, and a
// card that was decided stays where it is and says so.
const { htmx } = window;

function showDecided(card) {
  htmx.ajax("GET", `/approvals/${card.id.replace("approval-", "")}/`, {
    source: `#${card.id}`,
    target: `#${card.id}`,
    select: `#${card.id}`,
    swap: "outerHTML",
  });
}

function merge(list, fresh) {
  const pending = new Set([...fresh.children].map((row) => row.id));
  for (const row of [...list.children]) {
    const card = row.querySelector('.card[data-state="pending"]');
    if (card && !pending.has(row.id)) showDecided(card);
  }
  const added = [...fresh.children].filter((row) => !document.getElementById(row.id));
  list.append(...added);
  if (list.children.length > 1) list.querySelector("#row-none")?.remove();
  return added;
}

htmx.defineExtension("rows", {
  isInlineSwap: (style) => style === "rows",
  handleSwap(style, target, fragment) {
    if (style !== "rows") return false;
    const fresh = fragment.querySelector("#approvals");
    return fresh ? merge(target, fresh) : [];
  },
});
