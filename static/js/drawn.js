// Tells the server how far this page has drawn. It sends no more to a page that is far behind, so
// this says something after every 64 KiB at once, whatever the browser does to the timers of tabs
// that nobody looks at, and after anything less a moment later.
const AT_ONCE = 64 * 1024;
const MOMENT = 1000;
let socket = null;
let drawn;
let others = 0;
let unsaid = 0;
let timer = 0;

export function listen(opened) {
  socket = opened;
  drawn = undefined;
  others = unsaid = 0;
}

function say() {
  clearTimeout(timer);
  timer = unsaid = 0;
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ drawn, others }));
}

// `last` is the number that a frame ends with, null for one without.
export function took(length, last) {
  if (last === null) others += 1;
  else drawn = last;
  unsaid += length;
  if (unsaid >= AT_ONCE) say();
  else timer ||= setTimeout(say, MOMENT);
}
