// Leases are renewed without a word on the stream: while a turn runs and somebody can see it, the
// page asks who holds it.
const SECONDS = 3;

const connected = () => document.querySelector("#socket[data-connected=true]");

function look() {
  const holder = document.querySelector("#holder[data-looks]");
  const seen = document.visibilityState === "visible" && holder?.checkVisibility();
  if (seen && connected()) window.htmx.trigger(holder, "look");
}

setInterval(look, SECONDS * 1000);
document.addEventListener("visibilitychange", look);
