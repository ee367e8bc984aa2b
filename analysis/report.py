"""Tables and figures as text that stands alone: GitHub Markdown, and one HTML page with its pictures inside."""

import base64
import html
import io
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

BULLET = "- "
CODE = re.compile(r"`([^`]+)`")
PAGE_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1100px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0;font-size:14px}th,td{border:1px solid #ddd;padding:4px 9px;text-align:right}
th:first-child,td:first-child{text-align:left}th{background:#f4f4f4}img{max-width:100%}td{white-space:nowrap}
.item{display:list-item;margin:.4em 0 .4em 1.5em}.note{color:#777;font-size:13px}
"""


def markdown_table(table: pd.DataFrame) -> str:
    """A GitHub-flavoured table: the first column left, numbers right; NaN and None are a dash; `|` and newlines are escaped."""
    names = [_escape(str(name)) for name in table.columns]
    numeric = [pd.api.types.is_numeric_dtype(table.iloc[:, index]) for index in range(len(names))]
    rule = ["---:" if number else "---" for number in numeric]
    rows = [[_escape(cell(value)) for value in row] for row in table.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, rule, *rows]) + "\n"


def cell(value: object) -> str:
    """A value as a reader wants it: whole numbers with thin grouping, other numbers to three places, nothing as a dash."""
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", " ")
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def percent(rate: float, places: int = 1) -> str:
    """0.1234 → "12.3 %"; a dash where the rate is not defined."""
    return "–" if rate is None or not np.isfinite(rate) else f"{100 * rate:.{places}f} %"


def percent_interval(rate: float, low: float, high: float) -> str:
    """0.12, 0.1, 0.15 → "12.0 % (10.0–15.0)"; without an interval the rate alone."""
    if not np.isfinite([low, high]).all():
        return percent(rate)
    return f"{percent(rate)} ({100 * low:.1f}–{100 * high:.1f})"


def html_table(table: pd.DataFrame) -> str:
    """The same table as HTML."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in table.itertuples(index=False, name=None)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def figure_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def html_page(title: str, sections: Mapping[str, object], note: str = "") -> str:
    """One self-contained page: each section a heading over text, a table (DataFrame), a figure, the bytes of a PNG, or a list of them."""
    body = "".join(
        f"<h2>{html.escape(heading)}</h2>" + "".join(map(_html_part, parts if isinstance(parts, list) else [parts]))
        for heading, parts in sections.items()
    )
    note_line = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{PAGE_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{note_line}{body}</body></html>\n"
    )


def _html_part(part: object) -> str:
    if isinstance(part, pd.DataFrame):
        return html_table(part)
    if isinstance(part, (Figure, bytes)):
        png = figure_png(part) if isinstance(part, Figure) else part
        return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
    return "".join(map(_html_line, filter(None, str(part).split("\n"))))


def _html_line(line: str) -> str:
    text = CODE.sub(r"<code>\1</code>", html.escape(line.removeprefix(BULLET)))
    return f'<p class="item">{text}</p>' if line.startswith(BULLET) else f"<p>{text}</p>"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
