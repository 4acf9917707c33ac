// The timeline follows its end, but only if the reader was there.
const scroller = document.getElementById("scroller");
const timeline = document.getElementById("timeline");
const jump = document.getElementById("jump");
const NEAR = 32;
let following = true;
let seen = "";
let hand = -Infinity;

const sizes = () => `${timeline.offsetHeight} ${scroller.clientHeight}`;
const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
const toEnd = () => scroller.scrollTo({ top: scroller.scrollHeight, behavior: "instant" });

function follow(yes) {
  following = yes;
  jump.hidden = yes;
}

function scrolled() {
  // Rows that came or shrank move the view too; only a hand on it means that somebody reads.
  if (sizes() !== seen && performance.now() - hand > 300) return;
  follow(atEnd());
}

function resized() {
  seen = sizes();
  if (following) toEnd();
  else follow(atEnd());
}

function keepPlace({ detail: { target } }) {
  // Older rows come in above: what is being read stays where it is.
  if (target.id !== "older" && target.id !== "inherited-older") return;
  const anchor = target.nextElementSibling;
  const before = anchor?.getBoundingClientRect().top;
  const restore = () => {
    if (anchor) scroller.scrollTop += anchor.getBoundingClientRect().top - before;
  };
  document.addEventListener("htmx:afterSwap", restore, { once: true });
}

if (scroller && timeline) {
  toEnd();
  scroller.addEventListener("scroll", scrolled, { passive: true });
  for (const type of ["wheel", "touchmove", "pointerdown", "keydown"]) {
    scroller.addEventListener(type, () => (hand = performance.now()), { passive: true });
  }
  // Rows, drafts and pictures make the list grow; a composer that grows leaves it less room.
  const watch = new ResizeObserver(resized);
  watch.observe(timeline);
  watch.observe(scroller);
  // Opening something is reading it: do not run away to the end.
  timeline.addEventListener("click", ({ target }) => {
    if (target.closest("summary")) following = false;
  });
  jump.addEventListener("click", () => {
    follow(true);
    toEnd();
  });
  document.addEventListener("htmx:beforeRequest", ({ target }) => {
    if (target.matches(".composer")) follow(true);
  });
  document.addEventListener("htmx:beforeSwap", keepPlace);
}
