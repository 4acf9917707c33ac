// The inspector can be put away where it stands beside the timeline; the choice is remembered.
const wide = matchMedia("(min-width: 72rem)");
const toggle = document.querySelector(".open-inspector");
const put = (away) => document.body.toggleAttribute("data-inspector-away", away);

if (toggle) {
  put(localStorage.getItem("inspector") === "away");
  toggle.addEventListener("click", (event) => {
    if (!wide.matches) return;
    event.preventDefault();
    const away = !document.body.hasAttribute("data-inspector-away");
    put(away);
    localStorage.setItem("inspector", away ? "away" : "here");
  });
}
