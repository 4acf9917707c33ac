// A turn that was queued while another ran stands where it was sent. A line says where the other
// one goes on, and where it begins itself.
const timeline = document.getElementById("timeline");

const headOf = (turn) => timeline.querySelector(`[data-turn="${turn}"][data-number]`);

function say(text, turn, begun) {
  const head = headOf(turn);
  const number = head?.dataset.number;
  const end = begun ? " goes on" : " begins";
  const said = number ? `Turn ${number}${end}` : "The turn before goes on";
  if (text.textContent === said) return;
  text.replaceChildren(said);
  if (!number) return;
  const link = document.createElement("a");
  link.href = `#${head.id}`;
  link.textContent = `Turn ${number}`;
  const words = document.createElement("span");
  words.append(link, end);
  text.replaceChildren(words);
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

/** The open turn's head stands above rows that are not loaded yet, until its own place is. */
function dropCopy() {
  const first = timeline.firstElementChild;
  if (first?.id && timeline.querySelectorAll(`#${first.id}`).length > 1) first.remove();
}

function refresh() {
  dropCopy();
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
      say(lineBefore(row, its).firstChild, its, begun.has(its));
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
