"""The drawing board all figures share: colours, figure with title and note, quiet axes, heatmaps.

Figures are built with the object interface, so no backend is chosen and nothing is kept between them. Colours are those of
Okabe & Ito (2008), distinguishable with any colour vision; widths suit a browser column of 900 pixels.
"""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from analysis.plots.fonts import drawable

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NOISE_COLOUR = "#B0B0B0"
INK = "#333333"
WIDTH = 9.0  # inches; 900 pixels at DPI
DPI = 100
TITLE_WIDTH = 85  # characters of a line of the title
NAME_WIDTH = 40  # characters of a line of a name beside the axes: a longer one would leave them no room
LINE = 0.16  # inches of a line of a name


def new_figure(title: str, height: float = 4.5, n_rows: int = 1, n_columns: int = 1, note: str = "") -> tuple[Figure, np.ndarray]:
    """A titled figure and its axes, shape (n_rows, n_columns); `note` stands small at the foot ("synthetic speech")."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    text, families = drawable(title)
    figure.suptitle(fill(text, TITLE_WIDTH), fontsize=13, x=0.01, ha="left", color=INK, fontfamily=families)
    if note:
        figure.supxlabel(note, fontsize=8, x=0.995, ha="right", color="#777777")
    for axis in axes.flat:
        quiet(axis)
    return figure, axes


def quiet(axis: Axes) -> None:
    """Axes without a box, with a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E6E6E6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9, colors=INK)


def colour_of(index: int) -> str:
    """Colour of the index-th category; after eight they repeat, and `marker_of` tells them apart."""
    return COLOURS[index % len(COLOURS)]


def marker_of(index: int) -> str:
    """Marker of the index-th category; changes with the colour and again when the colours repeat."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def legend(axis: Axes, title: str = "", **options: Any) -> Legend:
    """A legend without frame, to the right of the axes so that it never covers data."""
    placed: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), **options}
    made = axis.legend(title=title, fontsize=9, title_fontsize=9, frameon=False, **placed)
    for text in made.get_texts():
        text.set_text(wrapped(text.get_text()))
    return made


def wrapped(name: str) -> str:
    """A name in lines that leave the axes room, its own among them: options make that of a system long, folders that of a speaker."""
    return "\n".join(fill(line, NAME_WIDTH, break_on_hyphens=False) for line in name.split("\n"))


def legend_height(names: Iterable[str]) -> float:
    """Inches of a figure beside whose axes these names stand, one below the other."""
    return 1.8 + sum(LINE * (1 + wrapped(name).count("\n")) + LINE / 3 for name in names)


def rows_height(names: Sequence[str], least: float) -> float:
    """Inches of rows with these names, all as high as the highest, and at `least` so high each."""
    return len(names) * max([least, *(LINE * (1 + wrapped(name).count("\n")) + LINE / 2 for name in names)])


def heatmap(
    axis: Axes,
    table: pd.DataFrame,
    texts: Sequence[Sequence[str]],
    high: float | None = None,
    colours: str = "Blues",
) -> None:
    """A table as coloured cells with a text in each; empty cells (NaN) stay white."""
    values = table.to_numpy(np.float64)
    top = high if high is not None else float(np.nanmax(values, initial=0.0)) or 1.0
    axis.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=top, aspect="auto")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xticks(range(table.shape[1]), [wrapped(str(name)) for name in table.columns], rotation=30 if wide(table.columns) else 0,
                    ha="right" if wide(table.columns) else "center")  # fmt: skip
    axis.set_yticks(range(table.shape[0]), [wrapped(str(name)) for name in table.index])
    size = 9 if max(table.shape) <= 12 else 7
    for row, column in np.ndindex(values.shape):
        shade = "white" if values[row, column] > 0.55 * top else INK
        axis.text(column, row, texts[row][column], ha="center", va="center", fontsize=size, color=shade)


def wide(names: Sequence[object]) -> bool:
    """Whether names side by side under an axis would run into each other."""
    return sum(len(str(name)) + 2 for name in names) > 75


def heatmap_height(n_rows: int) -> float:
    """Figure height in inches for a heatmap of so many rows."""
    return float(np.clip(1.8 + 0.42 * n_rows, 3.2, 14))


def percent_axis(axis: Axes, which: str = "x") -> None:
    """Show a rate as percent."""
    target = axis.xaxis if which == "x" else axis.yaxis
    target.set_major_formatter(lambda value, _: f"{100 * value:g} %")
