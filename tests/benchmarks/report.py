"""The rows of the result: a table for people, JSON for programs."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measured figure, and what it had to be. `ok` is true where nothing was asked of it."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    target: str | None = None
    ok: bool = True


class Report:
    """Collects rows and shows each as soon as it is there: a long run says how far it is."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._start = time.monotonic()

    def part(self, title: str) -> None:
        print(f"\n{title}  ({time.monotonic() - self._start:.0f} s)", flush=True)

    def note(self, name: str, value: float, unit: str, *, ratio: float | None = None) -> None:
        """Add a figure that nothing is asked of."""
        self._add(Row(name, _rounded(value), unit, _rounded(ratio)))

    def at_least(self, name: str, value: float, unit: str, least: float) -> None:
        self._add(Row(name, _rounded(value), unit, None, f">= {least:g} {unit}", value >= least))

    def at_most(self, name: str, value: float, unit: str, most: float) -> None:
        self._add(Row(name, _rounded(value), unit, None, f"<= {most:g} {unit}", value <= most))

    def below(self, name: str, value: float, unit: str, limit: float) -> None:
        self._add(Row(name, _rounded(value), unit, None, f"< {limit:g} {unit}", value < limit))

    def ratio_at_least(
        self, name: str, value: float, unit: str, *, beside: float, least: float
    ) -> None:
        ratio = value / beside
        row = Row(name, _rounded(value), unit, _rounded(ratio), f"ratio >= {least:g}")
        self._add(Row(**{**asdict(row), "ok": ratio >= least}))

    def ratio_at_most(
        self, name: str, value: float, unit: str, *, beside: float, most: float
    ) -> None:
        ratio = value / beside
        row = Row(name, _rounded(value), unit, _rounded(ratio), f"ratio <= {most:g}")
        self._add(Row(**{**asdict(row), "ok": ratio <= most}))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(_line(row), flush=True)

    def table(self) -> str:
        missed = sum(not row.ok for row in self.rows)
        asked = sum(row.target is not None for row in self.rows)
        lines = [HEAD, "-" * len(HEAD), *map(_line, self.rows), ""]
        spent = time.monotonic() - self._start
        lines.append(f"{asked - missed} of {asked} targets met, in {spent:.0f} s.")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in self.rows]
        path.write_text(json.dumps({"rows": rows}, indent=1, allow_nan=False) + "\n")


HEAD = f"{'':74}{'value':>11} {'unit':<18}{'ratio':>7}  {'target':<24}"


def _line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    verdict = "" if row.target is None else ("ok" if row.ok else "MISSED")
    value = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:g}"
    return f"{row.name:<74}{value:>11} {row.unit:<18}{ratio:>7}  {row.target or '':<24}{verdict}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def median(values: Sequence[float]) -> float:
    if not values or any(math.isnan(value) for value in values):
        raise SystemExit("Nothing was measured where something had to be.")
    return statistics.median(values)
