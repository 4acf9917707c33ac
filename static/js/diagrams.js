// A diagram that cannot be drawn shows its source instead.
function give(image) {
  const figure = image.closest(".diagram");
  figure.dataset.broken = "";
  figure.querySelector("details").open = true;
}

// Those that failed before this script was there.
const failed = (image) => image.complete && image.currentSrc && !image.naturalWidth;

document.addEventListener(
  "error",
  ({ target }) => {
    if (target.matches?.(".diagram > img")) give(target);
  },
  true,
);
[...document.querySelectorAll(".diagram > img")].filter(failed).forEach(give);
