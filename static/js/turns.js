// A turn that was queued while another ran stands where it was sent. A line says where the other
// one goes on, and where it begins itself.
const timeline = document.getElementById("timeline");

const numberOf = (turn) => timeline.querySelector(`[data-turn="${turn}"][data-number]`)?.dataset.number;

function words(turn, begun) {
  const number = numberOf(turn);
  if (!number) return "The turn before goes on";
  return begun ? `Turn ${number} goes on` : `Turn ${number} begins`;
}

function line(turn) {
  const row = document.createElement("li");
  row.className = "event turn continued";
  row.dataset.turn = turn;
  const text = document.createElement("p");
  text.className = "turn-line";
  row.append(text);
  return row;
}

function lineBefore(row, turn) {
  const before = row.previousElementSibling;
  if (before?.dataset.turn === turn && before.classList.contains("continued")) return before;
  row.before(line(turn));
  return row.previousElementSibling;
}

function refresh() {
  const begun = new Set();
  let turn = "";
  for (const row of [...timeline.children]) {
    const its = row.dataset.turn;
    if (!its || row.hidden) continue;
    if (row.classList.contains("continued")) {
      if (its === turn) row.remove();
      continue;
    }
    if (its !== turn && turn && !row.classList.contains("turn")) {
      const text = lineBefore(row, its).firstChild;
      const said = words(its, begun.has(its));
      if (text.textContent !== said) text.textContent = said;
    }
    // Its head and its instruction stand where it was sent; anything else is work.
    if (!row.matches(".turn, .message.user")) begun.add(its);
    turn = its;
  }
}

if (timeline) {
  document.addEventListener("htmx:afterSettle", refresh);
  document.addEventListener("htmx:wsAfterMessage", refresh);
  refresh();
}
