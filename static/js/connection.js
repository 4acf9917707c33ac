// Shows the connection when it is not fine, and brings it back.
import { connection } from "./cursor.js";

const { htmx } = window;
const COMES_BACK_BY_ITSELF = [1006, 1011, 1012, 1013];
const FINAL = {
  4403: ["You may not see this session any more.", ""],
  4400: ["The page is out of step with the server.", "Reload"],
};
const element = document.getElementById("socket");
const status = document.getElementById("connection");
let timer = 0;
let retries = 0;

htmx.config.wsReconnectDelay = (count) => Math.min(5000, 200 * 2 ** count) * (0.5 + Math.random() / 2);

function say(text, action = "") {
  status.textContent = text;
  if (action) {
    const link = document.createElement("a");
    link.href = location.href;
    link.textContent = action;
    status.append(" ", link);
  }
  status.hidden = !text;
}

document.addEventListener("htmx:wsOpen", (event) => {
  connection.wrapper = event.detail.socketWrapper;
  retries = 0;
  clearTimeout(timer);
  timer = 0;
  say("");
  element.dataset.connected = "true";
  // What changed in the lists while nobody listened. The list of the archived has no signal.
  if (document.getElementById("rail-signal")) htmx.trigger("#rail-search", "refresh");
});

document.addEventListener("htmx:wsClose", (event) => {
  const { event: closing, socketWrapper } = event.detail;
  if (closing.target !== connection.socket) return;
  element.dataset.connected = "false";
  clearTimeout(timer);
  if (FINAL[closing.code]) {
    say(...FINAL[closing.code]);
    return;
  }
  timer = setTimeout(say, 1000, "Reconnecting…");
  if (!COMES_BACK_BY_ITSELF.includes(closing.code)) {
    setTimeout(socketWrapper.reconnect, htmx.config.wsReconnectDelay(retries++));
  }
});

addEventListener("online", () => {
  if (connection.socket?.readyState === WebSocket.CLOSED) connection.wrapper?.reconnect();
});
