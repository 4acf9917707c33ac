// What went wrong with an action, said on the page; a whole page never lands inside a part of one.
const region = () => document.getElementById("notice");

export function notice(text, link = null) {
  const said = document.createElement("p");
  said.textContent = text;
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link.href;
    anchor.textContent = link.text;
    said.append(" ", anchor);
  }
  region().replaceChildren(said);
}

function wholePage(detail) {
  const { xhr } = detail;
  const signIn = new URL(xhr.responseURL || location.href).pathname.startsWith("/sign-in/");
  if (signIn) {
    notice("You are signed out. What you typed is kept.", { href: location.href, text: "Sign in again" });
    return true;
  }
  if (xhr.status < 400 || !/^\s*<!doctype/i.test(xhr.responseText)) return false;
  const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
  const said = ["main h1", "main h1 ~ p"].map((part) => page.querySelector(part)?.textContent.trim());
  notice(said[0] ? said.join(". ") : `The server answered ${xhr.status}.`);
  return true;
}

document.addEventListener("htmx:beforeSwap", (event) => {
  if (wholePage(event.detail)) event.detail.shouldSwap = false;
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.matches("form")) region().replaceChildren();
});
document.addEventListener("htmx:responseError", () => {
  notice("Something failed on the server and was not done. Its log says what. Try again.");
});
document.addEventListener("htmx:sendError", (event) => {
  if (event.target.matches("form")) notice("The server cannot be reached. Nothing was sent; try again.");
});
document.addEventListener("htmx:afterRequest", ({ detail }) => {
  // The form that asked. The event's target is what a swap left in its place, with buttons of others.
  const { elt, triggeringEvent } = detail.requestConfig;
  const button = triggeringEvent?.submitter?.closest("[data-doing]") ?? elt.querySelector("button[data-doing]");
  if (!button || !detail.successful) return;
  button.disabled = true;
  button.textContent = button.dataset.doing;
});
