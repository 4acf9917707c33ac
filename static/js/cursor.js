// The page's place in its session's stream: every connection goes on from the last seq on the page,
// so nothing is missed and nothing comes twice.
import { listen, took } from "./drawn.js";

const { htmx } = window;
const timeline = () => document.getElementById("timeline");
const open = htmx.createWebSocket;
let applying = null;
let length = 0;

export const connection = { socket: null, wrapper: null };

htmx.createWebSocket = (url) => {
  const last = timeline()?.dataset.last;
  connection.socket = open(last === undefined ? url : `${url}&after=${last}`);
  listen(connection.socket);
  return connection.socket;
};

document.addEventListener("htmx:wsBeforeMessage", (event) => {
  applying = null;
  length = event.detail.message.length;
  const numbers = /^<!--(\d+) (\d+)-->/.exec(event.detail.message);
  if (!numbers) return;
  const [first, last] = numbers.slice(1).map(Number);
  const have = Number(timeline().dataset.last);
  if (last <= have) {
    event.preventDefault();
    took(length, last);
  } else if (first !== have + 1) {
    // Something is missing between the page and this frame: ask again from where the page is.
    event.preventDefault();
    event.detail.socketWrapper.reconnect();
  } else {
    applying = last;
  }
});

document.addEventListener("htmx:wsAfterMessage", () => {
  if (applying !== null) timeline().dataset.last = applying;
  took(length, applying);
});
