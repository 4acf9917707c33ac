// A turn that was queued while another ran stands where it was sent. A line says where the other
// one goes on, and where it begins itself.
const timeline = document.getElementById("timeline");

const numberOf = (turn) => timeline.querySelector(`[data-turn="${turn}"][data-number]`)?.dataset.number;

function words(turn, after) {
  const [number, other] = [numberOf(turn), numberOf(after)].map(Number);
  if (!number) return "The turn before goes on";
  return number > other ? `Turn ${number} begins` : `Turn ${number} goes on`;
}

function line(turn, after) {
  const row = document.createElement("li");
  row.className = "event turn continued";
  row.dataset.turn = turn;
  const text = document.createElement("p");
  text.className = "turn-line";
  text.textContent = words(turn, after);
  row.append(text);
  return row;
}

function refresh() {
  let turn = "";
  for (const row of [...timeline.children]) {
    const its = row.dataset.turn;
    if (!its || row.hidden) continue;
    if (row.classList.contains("continued")) {
      if (its === turn) row.remove();
      continue;
    }
    if (its !== turn && turn && !row.classList.contains("turn")) {
      const before = row.previousElementSibling;
      if (before?.dataset.turn !== its || !before.classList.contains("continued")) {
        row.before(line(its, turn));
      }
    }
    turn = its;
  }
}

if (timeline) {
  document.addEventListener("htmx:afterSettle", refresh);
  document.addEventListener("htmx:wsAfterMessage", refresh);
  refresh();
}
