"""Text that people and agents wrote, made into safe HTML on the server.

Everything here returns HTML that holds no script, no style and no foreign address to load from.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

TAGS = {
    "a", "blockquote", "br", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
    "li", "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr",
    "ul",
}  # fmt: skip
ATTRIBUTES = {
    "a": {"href", "title"},
    "code": {"class"},
    "div": {"class"},
    "ol": {"start"},
    "pre": {"class"},
    "span": {"class"},
}
# Only the highlighter's classes; a message must not dress up as a card.
CLASSES = re.compile(r"^(hl|[a-z]{1,3}[0-9]?|language-[\w+-]+)$")

# Those whose lexers stay quick on hostile text; many others take seconds.
LANGUAGES = {
    "bash", "console", "css", "diff", "go", "ini", "java", "javascript", "js", "json", "make",
    "python", "py", "rust", "sh", "shell", "sql", "toml", "ts", "typescript", "yaml", "yml",
}  # fmt: skip
MOST_HIGHLIGHTED = 10_000

_formatter = HtmlFormatter(nowrap=True)


def _fence(code: str, language: str, attributes: str) -> str:
    return f'<pre class="hl"><code>{_highlight(code, language)}</code></pre>'


_markdown = MarkdownIt("commonmark", {"html": False, "highlight": _fence}).enable(
    ["table", "strikethrough"]
)


def _filter_attribute(tag: str, name: str, value: str) -> str | None:
    if name == "class":
        kept = [word for word in value.split() if CLASSES.match(word)]
        return " ".join(kept) or None
    return value


_cleaner = nh3.Cleaner(
    tags=TAGS,
    attributes=ATTRIBUTES,
    attribute_filter=_filter_attribute,
    url_schemes={"http", "https", "mailto"},
    link_rel="noopener noreferrer nofollow",
)


@lru_cache(maxsize=512)
def markdown_to_html(text: str) -> str:
    """Render Markdown; raw HTML in it stays text, and links lead out without telling where from."""
    return _cleaner.clean(_markdown.render(text))


def _highlight(code: str, language: str) -> str:
    name = language.split()[0].lower() if language.strip() else ""
    if name not in LANGUAGES or len(code) > MOST_HIGHLIGHTED:
        return html.escape(code)
    lexer = get_lexer_by_name(name, stripnl=False)
    return str(highlight(code, lexer, _formatter))


def code_to_html(text: str, language: str) -> str:
    """Highlight source for someone who decides on it: nothing in it can hide."""
    marked = reveal(text)
    rendered = _highlight(marked, language)
    return re.sub(
        f"{_OPEN}(.+?){_CLOSE}", r'<span class="unseen">\1</span>', rendered, flags=re.DOTALL
    )


def reveal_to_html(text: str) -> str:
    """Escape a line of text and spell out what in it cannot be seen."""
    revealed = html.escape(reveal(text))
    return re.sub(f"{_OPEN}(.+?){_CLOSE}", r'<span class="unseen">\1</span>', revealed)


# Private-use characters bracket what was revealed until the highlighter is through.
_OPEN, _CLOSE = "\ue000", "\ue001"


def reveal(text: str) -> str:
    """Spell out what cannot be seen or told from a blank, bracketed for `code_to_html`."""
    return "".join(_revealed(text))


def _revealed(text: str) -> Iterator[str]:
    for character in text:
        if character in "\n\t " or not _hides(character):
            yield character
        else:
            yield f"{_OPEN}U+{ord(character):04X}{_CLOSE}"


# Letters, marks and symbols to Unicode, and nothing to the eye: fillers and selectors.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


def _hides(character: str) -> bool:
    # Cc control, Cf format (bidirectional, zero width), Co private use, Zl and Zp separators, and
    # Zs the other spaces, which a shell takes as part of a word.
    hidden = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}
    return unicodedata.category(character) in hidden or _BLANK.match(character) is not None


# -- terminals -----------------------------------------------------------------------------------

_ANSI = re.compile(r"\x1b\[([0-9;]{0,64})m")
_OTHER_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]"  # moving about
    r"|[\x00-\x08\x0b-\x1f\x7f]"
)
_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def ansi_to_html(text: str) -> str:
    """Render terminal output: colours as classes, a lone carriage return starts its line again."""
    text = "\n".join(_overwritten(line) for line in text.replace("\r\n", "\n").split("\n"))
    out: list[str] = []
    classes: set[str] = set()
    position = 0
    for match in _ANSI.finditer(text):
        _put(out, text[position : match.start()], classes)
        classes = _styled(classes, match.group(1))
        position = match.end()
    _put(out, text[position:], classes)
    return "".join(out)


def _overwritten(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]


def _put(out: list[str], text: str, classes: set[str]) -> None:
    plain = html.escape(_OTHER_ESCAPES.sub("", text))
    if plain and classes:
        out.append(f'<span class="{" ".join(sorted(classes))}">{plain}</span>')
    else:
        out.append(plain)


def _styled(classes: set[str], codes: str) -> set[str]:
    numbers = [int(code) for code in codes.split(";") if code] or [0]
    result = set(classes)
    while numbers:
        number = numbers.pop(0)
        if number == 0:
            result = set()
        elif number in (1, 2, 3, 4):
            result.add(("bold", "faint", "italic", "underline")[number - 1])
        elif number == 39:
            result = {name for name in result if not name.startswith("fg-")}
        elif 30 <= number <= 37 or 90 <= number <= 97:
            result = {name for name in result if not name.startswith("fg-")}
            result.add(f"fg-{_COLOURS[number % 10]}")
        elif number in (38, 48):
            # 256 colours and true colour: their arguments are skipped.
            del numbers[: 2 if numbers[:1] == [5] else 4]
    return result


# -- diffs ---------------------------------------------------------------------------------------


def diff_lines(text: str) -> list[tuple[str, str]]:
    """Split a unified diff into (kind, line) with kind `file`, `hunk`, `add`, `del` or `same`."""
    lines: list[tuple[str, str]] = []
    old = new = 0  # what is still to come of the present hunk, where `--- x` is a removed line
    for line in text.removesuffix("\n").split("\n") if text else ():
        if old > 0 or new > 0:
            kind = _CHANGES.get(line[:1], "same")
            old -= kind != "add" and line[:1] != "\\"
            new -= kind != "del" and line[:1] != "\\"
        else:
            kind = _diff_kind(line)
            if hunk := _HUNK.match(line):
                old, new = (int(count or 1) for count in hunk.groups())
        lines.append((kind, line))
    return lines


_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_CHANGES = {"+": "add", "-": "del"}


def _diff_kind(line: str) -> str:
    if line.startswith(("diff ", "index ", "--- ", "+++ ", "new file", "deleted file", "rename ")):
        return "file"
    if line.startswith("@@"):
        return "hunk"
    return _CHANGES.get(line[:1], "same")
