"""Template words of our own: rendering rows, Markdown, output, times and sizes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import template
from django.template import TemplateDoesNotExist
from django.template.loader import get_template
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from ..markup import (
    ansi_to_html,
    code_to_html,
    diff_lines,
    markdown_to_html,
    reveal_to_html,
)
from ..timeline import Item, render_row

if TYPE_CHECKING:
    from ..models.usage import Usage

register = template.Library()


@register.simple_tag
def row(item: Item) -> SafeString:
    """Render one row of the timeline, as the stream does."""
    return mark_safe(render_row(item))


@register.simple_block_tag(takes_context=True)
def event(
    context: template.Context, content: str, classes: str, **attributes: object
) -> SafeString:
    """Wrap what a row shows in its element. A keyword becomes a `data-` attribute."""
    item = context["item"]
    told = {"turn": item.anchor.turn_id, **attributes}
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in told.items() if value)
    swap = ' hx-swap-oob="true"' if context["replace"] else ""
    return mark_safe(
        f'<li id="{item.dom_id}" class="event {escape(classes)}"{data}{swap}>{content}</li>'
    )


@register.simple_tag
def dom_id(thing: object, part: str = "") -> str:
    """Name an element for a thing, and for a part of it: the one place ids come from."""
    name = getattr(thing, "dom_id", None) or getattr(thing, "pk", None) or str(thing)
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{name}-{part}" if part else str(name))


@register.filter
def markdown(text: str) -> SafeString:
    return mark_safe(markdown_to_html(text))


@register.filter
def ansi(text: str) -> SafeString:
    """Terminal output with its colours as classes."""
    return mark_safe(ansi_to_html(text))


@register.filter
def code(text: str, language: str = "text") -> SafeString:
    """Source with its syntax as classes; what cannot be seen is made visible."""
    return mark_safe(code_to_html(text, language))


@register.filter
def revealed(text: str) -> SafeString:
    """A line that somebody decides by: what in it cannot be seen is spelled out."""
    return mark_safe(reveal_to_html(text))


register.filter("diff_lines", diff_lines)


@register.filter
def duration(milliseconds: int | None) -> str:
    """A length of time in the shortest honest form: `0.3 s`, `12 s`, `4 min 5 s`, `2 h 3 min`."""
    if milliseconds is None:
        return ""
    seconds = milliseconds / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def seconds(milliseconds: int) -> str:
    """A length of time in whole seconds, as the page's script goes on counting it."""
    whole = milliseconds // 1000
    return f"{whole} s" if whole < 60 else duration(whole * 1000)


@register.filter
def size(count: int | None) -> str:
    """Bytes as `14 B`, `1.1 kB`, `18.4 MB`."""
    value = float(count or 0)
    if value < 1000:
        return f"{int(value)} B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            return f"{value:.1f} {unit}"
    return ""


@register.filter
def used(work: Usage) -> list[tuple[str, str]]:
    """What a turn or a session has used, as names and amounts; only what there is."""
    tokens = f"{work.input_tokens:,} in, {work.output_tokens:,} out"
    cost = f"${work.cost:,.2f}" if work.cost >= Decimal("0.01") else f"${work.cost.normalize():f}"
    amounts = [
        ("Compute", duration(work.compute_ms), work.compute_ms),
        ("Artifacts", size(work.storage_bytes), work.storage_bytes),
        ("Tokens", tokens, work.input_tokens or work.output_tokens),
        ("Cost", cost, work.cost),
    ]
    return [(name, amount) for name, amount, some in amounts if some]


@register.filter
def clock(moment: datetime | None) -> SafeString | str:
    """A time of day; the page's script makes it local, and the exact time is in its title."""
    if moment is None:
        return ""
    utc = moment.astimezone(UTC)
    return _time("clock", utc, f"{utc.hour:02}:{utc.minute:02}")


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """A time as distance from now, kept fresh by the page's script."""
    if moment is None:
        return ""
    utc = moment.astimezone(UTC)
    return _time("ago", utc, f"{utc:%d %b %H:%M}")


@register.filter
def left(moment: datetime) -> SafeString:
    """How long it is until then, counted down by the page's script from when it came."""
    remaining = max(0, int((moment - datetime.now(UTC)).total_seconds() * 1000))
    return mark_safe(f'<span data-left="{remaining}">{duration(remaining)}</span>')


def _time(kind: str, utc: datetime, shown: str) -> SafeString:
    exact = utc.isoformat()
    title = f"{exact[:10]} {exact[11:19]} UTC"
    return mark_safe(f'<time datetime="{exact}" data-{kind} title="{title}">{shown}</time>')


@register.filter
def lines(text: str) -> int:
    return len(text.splitlines())


@register.filter
def initials(name: str) -> str:
    return escape(name.strip()[:2].upper())


@register.filter
def as_json(value: object) -> str:
    """A value as indented JSON, for those who want to see exactly what is stored."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


TICKED = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@register.filter
def ticked(text: str) -> SafeString:
    """A message with its `words` as code. All of it is escaped: it quotes what people wrote."""
    return mark_safe(TICKED.sub(r"<code>\1</code>", escape(text)))


@register.filter
def view(done: dict[str, Any] | None) -> dict[str, Any]:
    """A call's output and how it is shown: whether at all, folded, and how much is left out."""
    output = (done or {}).get("output") or {}
    head, tail = output.get("head", ""), output.get("tail", "")
    lines = len(head.splitlines())
    unseen = output.get("size", 0) - len(head.encode()) - len(tail.encode())
    return {
        **output,
        "something": head or tail or output.get("note") or output.get("artifact_id"),
        "lines": lines,
        "long": lines > 12 or len(head) > 900 or bool(tail),
        "left_out": 0 if output.get("binary") else max(0, unseen),
    }


@register.filter
def widget_template(item: Item) -> str:
    """The template of a widget's kind; that of an unknown event when there is none."""
    kind = str(item.data.get("widget", ""))
    name = f"sessions/widgets/{kind}.html"
    try:
        if re.fullmatch(r"[a-z_]+", kind):
            get_template(name)
            return name
    except TemplateDoesNotExist:
        pass
    return "sessions/events/broken.html"


@register.filter
def gist(source: str) -> str:
    """The first line of a step that says something: not a comment, not its preparation."""
    said = [line.strip() for line in source.splitlines() if line.strip()]
    idle = ("#", "set -", "cd ", "import ", "from ", "mkdir -p ")
    return next((line for line in said if not line.startswith(idle)), said[0] if said else "")


@register.filter
def step(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a row shows of a call's arguments, which may hold anything."""
    return {name: arguments.get(name) for name in ("name", "source", "timeout")}


@register.filter
def outcome(done: dict[str, Any] | None) -> str:
    """How a call ended, in a word or two; that it runs when it has not."""
    if not done:
        return "running"
    status, code = str(done.get("status")), done.get("exit_code")
    if code is not None and status in ("succeeded", "failed"):
        return f"exit {code}"
    return status.replace("_", " ")


CALL_MARKS = {"shell": "$", "repository": "repo", "network": "net", "browser": "web", "other": "·"}


@register.filter
def call_mark(call: dict[str, Any]) -> str:
    """A few letters that stand for a call's kind."""
    kind, tool = call.get("kind", ""), call.get("tool", "")
    return "py" if (kind, tool) == ("shell", "python") else CALL_MARKS.get(kind, kind[:4])
