// Fits what the stream sends to what is on this page. A row of an older page that is not loaded
// has nothing to replace; a row that is here already is replaced, never appended twice.
const parsed = document.createElement("template");

function keepFirstBreak(element) {
  // The parser drops a line break at the start of these, and this text is parsed again.
  const first = element.firstChild;
  if (first?.nodeType === Node.TEXT_NODE && first.data.startsWith("\n")) element.prepend("\n");
}

function fit(content) {
  let changed = false;
  for (const list of content.querySelectorAll(":scope > ol#timeline, ol#timeline")) {
    for (const row of [...list.children]) {
      if (!document.getElementById(row.id)) continue;
      row.setAttribute("hx-swap-oob", "true");
      content.append(row);
      changed = true;
    }
  }
  for (const part of [...content.children]) {
    if (part.id && document.getElementById(part.id)) continue;
    part.remove();
    changed = true;
  }
  return changed;
}

window.htmx.defineExtension("frames", {
  transformResponse(text) {
    parsed.innerHTML = text;
    if (!fit(parsed.content)) return text;
    parsed.content.querySelectorAll("pre, textarea").forEach(keepFirstBreak);
    return parsed.innerHTML;
  },
});
