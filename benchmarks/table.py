"""What a benchmark found, as JSON and as one Markdown table: each claim with its medians, its ratio, the spread and the goal.

A file keeps every comparison under its own name, so that one can be measured again without the others; what is in one comparison was
measured in one process, in turn.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.files import write_whole

HEADER = "| comparison | ours | against | ratio (spread) | goal | met |\n| --- | --- | --- | --- | --- | --- |"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of the table: a variant against another (a ratio), or alone (its own value).

    Attributes:
        text: what is compared.
        variant, against: names of measured variants; `against` None makes the value itself the figure.
        at_most: the goal; None where the line is for information.
    """

    text: str
    variant: str
    against: str | None = None
    at_most: float | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A claim measured: medians in `unit`, median and range of the ratio (of the value, where there is nothing against)."""

    text: str
    unit: str
    median: float
    median_against: float | None
    ratio: float
    lowest: float
    highest: float
    at_most: float | None
    repeats: int

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.at_most is None else self.ratio <= self.at_most


def figure(claim: Claim, measured: Mapping[str, Sequence[float]], unit: str) -> Figure:
    """A claim from what was measured; the ratio is taken round by round, then its median."""
    ours = measured[claim.variant]
    against = measured[claim.against] if claim.against else None
    ratios = [a / b for a, b in zip(ours, against, strict=True)] if against else list(ours)
    return Figure(
        text=claim.text,
        unit=unit,
        median=statistics.median(ours),
        median_against=statistics.median(against) if against else None,
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        at_most=claim.at_most,
        repeats=len(ours),
    )


def record(figures: Sequence[Figure], measured: Mapping[str, Sequence[float]], unit: str, **facts: Any) -> dict[str, Any]:
    """One comparison as JSON: its figures, every single measurement, and facts (machine, versions, workload)."""
    rows = [dataclasses.asdict(one) | {"met": one.met} for one in figures]
    return facts | {"unit": unit, "figures": rows, "measured": {name: list(values) for name, values in measured.items()}}


def read(path: Path) -> dict[str, Any]:
    """The comparisons of an earlier run; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, title: str, comparisons: Mapping[str, dict[str, Any]]) -> str:
    """Write `path`.json and `path`.md; returns the Markdown."""
    return write_both(path, markdown(title, comparisons), comparisons)


def write_both(path: Path, text: str, values: Any) -> str:
    """Write a page as `path`.md and what it shows as `path`.json; returns the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(values, indent=1) + "\n"), (".md", text)):
        with write_whole(path.with_suffix(suffix)) as aside:
            Path(aside).write_text(content, encoding="utf-8")
    return text


def markdown(title: str, comparisons: Mapping[str, dict[str, Any]]) -> str:
    """All comparisons as one page: the table, then where and how each was measured."""
    rows = [_row(row) for comparison in comparisons.values() for row in comparison["figures"]]
    notes = [f"- {name}: {_facts(comparison)}" for name, comparison in comparisons.items()]
    return "\n".join([f"# {title}", "", HEADER, *rows, "", "## How it was measured", "", *notes]) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    goal = "" if row["at_most"] is None else f"≤ {_number(row['at_most'])}"
    if row["median_against"] is None:
        spread = f" ({_number(row['lowest'])}–{_number(row['highest'])})" if row["repeats"] > 1 else ""
        return f"| {row['text']} | {_number(row['median'])} {row['unit']}{spread} | | | {goal} | {met} |"
    ratio = f"{_number(row['ratio'])} ({_number(row['lowest'])}–{_number(row['highest'])})"
    ours, against = (f"{_number(row[name])} {row['unit']}" for name in ("median", "median_against"))
    return f"| {row['text']} | {ours} | {against} | {ratio} | {goal} | {met} |"


def _facts(comparison: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in comparison.items() if name not in ("figures", "measured")}
    repeats = max((row["repeats"] for row in comparison["figures"]), default=0)
    return ", ".join(f"{name} {value}" for name, value in (plain | {"repeats": repeats}).items())


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
