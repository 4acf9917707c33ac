// Times as this reader's clock says them; exact on hover.
const DAY = 86_400_000;
const format = (options) => new Intl.DateTimeFormat("en-GB", options);
const hour = format({ hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const weekday = format({ weekday: "short" });
const day = format({ day: "numeric", month: "short" });
const year = format({ day: "numeric", month: "short", year: "numeric" });
const exact = format({ dateStyle: "full", timeStyle: "medium" });

const date = (moment) => (moment.getFullYear() === new Date().getFullYear() ? day : year).format(moment);

function clock(moment) {
  const today = moment.toDateString() === new Date().toDateString();
  return today ? hour.format(moment) : `${date(moment)} ${hour.format(moment)}`;
}

function ago(moment) {
  const passed = Date.now() - moment;
  if (passed < 60_000) return "now";
  if (passed < 3_600_000) return `${Math.floor(passed / 60_000)} min`;
  if (passed < DAY) return `${Math.floor(passed / 3_600_000)} h`;
  return passed < 6 * DAY ? weekday.format(moment) : date(moment);
}

/** How long something runs, in the words of the server's `duration`. */
const since = (moment) => length(Math.max(0, Date.now() - moment));

function length(milliseconds) {
  const passed = Math.floor(milliseconds / 1000);
  if (passed < 60) return `${passed} s`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ${passed % 60} s`;
  return `${Math.floor(passed / 3600)} h ${Math.floor((passed % 3600) / 60)} min`;
}

function show(element, words) {
  const moment = new Date(element.dateTime);
  if (Number.isNaN(moment.valueOf())) return;
  const text = words(moment);
  if (element.textContent !== text) element.textContent = text;
  const title = exact.format(moment);
  if (element.title !== title) element.title = title;
}

// Ages that the server measured go on from when they came: its clock need not be ours.
const came = new WeakMap();

function count(element) {
  if (!came.has(element)) came.set(element, performance.now());
  const waited = performance.now() - came.get(element);
  const { passed, left } = element.dataset;
  const milliseconds = passed === undefined ? Math.max(0, left - waited) : Number(passed) + waited;
  const text = length(milliseconds);
  if (element.textContent !== text) element.textContent = text;
}

function tick() {
  document.querySelectorAll("time[data-since]").forEach((element) => show(element, since));
  document.querySelectorAll("[data-passed], [data-left]").forEach(count);
}

function refresh() {
  tick();
  document.querySelectorAll("time[data-clock]").forEach((element) => show(element, clock));
  document.querySelectorAll("time[data-ago]").forEach((element) => show(element, ago));
}

setInterval(tick, 1000);
setInterval(refresh, 30_000);
document.addEventListener("htmx:afterSettle", refresh);
document.addEventListener("htmx:wsAfterMessage", refresh);
refresh();
