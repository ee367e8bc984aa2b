"""Pictures of training: any metrics against the epoch, and one metric of several runs overlaid."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots.canvas import colour_of, legend, marker_of, new_figure, percent_axis

MANY_POINTS = 40  # above this a line carries no markers
MOST_INSIDE = 3  # lines whose names fit into a panel


def training_curves(
    history: pd.DataFrame,
    panels: Mapping[str, Sequence[str]],
    title: str = "Training",
    x: str = "epoch",
    best: float | None = None,
    note: str = "",
) -> Figure:
    """Panels of metrics against the epoch.

    Args:
        history: one row per epoch (or update), column `x` and one column per metric; gaps (NaN) are bridged.
        panels: panel title → the columns drawn in it; a title with "WER", "CER", "accuracy" or "load" is shown in percent.
        best: the kept epoch, marked.

    Raises:
        ValueError: a column named is not in the history.
    """
    missing = sorted({name for names in panels.values() for name in names} - set(history.columns))
    if missing or x not in history.columns:
        raise ValueError(f"training history lacks {', '.join(missing or [x])}; it has {', '.join(map(str, history.columns))}")
    figure, axes = new_figure(title, 3.9, 1, max(1, len(panels)), note)
    crowded = any(len(columns) > MOST_INSIDE for columns in panels.values())
    for axis, (name, columns) in zip(axes[0], panels.items(), strict=False):
        for index, column in enumerate(columns):
            _line(axis, history[[x, column]].dropna(), line_name(column, columns), index)
        _finish(axis, name, x, best, outside=crowded, named=not crowded or axis is axes[0, -1])
    return figure


def line_name(column: str, columns: Sequence[str]) -> str:
    """What a line is called beside others: what they have in common stands in the panel's title."""
    first, _, rest = column.partition("/")
    firsts, rests = ({name.partition("/")[place] for name in columns} for place in (0, 2))
    if len(columns) == 1:
        return column
    if len(firsts) == 1:
        return rest.replace("_", " ") or "all"
    return first if len(rests) == 1 and rest else column


def overlaid_curves(
    histories: Mapping[str, pd.DataFrame], column: str, x: str = "epoch", title: str = "", note: str = ""
) -> Figure:
    """One metric of several runs over the epochs; runs without the metric are named in the title rather than left out unsaid."""
    have = {name: history for name, history in histories.items() if column in history.columns}
    without = sorted(set(histories) - set(have))
    said = (title or f"{column} by {x}") + (f" (not recorded: {', '.join(without)})" if without else "")
    figure, axes = new_figure(said, 4.5, note=note)
    for index, (name, history) in enumerate(have.items()):
        _line(axes[0, 0], history[[x, column]].dropna(), name, index)
    _finish(axes[0, 0], column, x, None, outside=True)
    return figure


def _line(axis: Axes, points: pd.DataFrame, label: str, index: int) -> None:
    marker = marker_of(index) if len(points) <= MANY_POINTS else None
    axis.plot(points.iloc[:, 0], points.iloc[:, 1], color=colour_of(index), marker=marker, markersize=4, label=label)


def _finish(axis: Axes, name: str, x: str, best: float | None, outside: bool = False, named: bool = True) -> None:
    axis.set_title(name, fontsize=10, loc="left")
    axis.set_xlabel(x)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if best is not None:
        axis.axvline(best, color="#777777", linestyle=":", label=f"kept: {best:g}")
    if any(word in name.lower() for word in ("wer", "cer", "accuracy", "load")):
        percent_axis(axis, "y")
    if outside and named:
        legend(axis)
    elif named:
        legend(axis, loc="best", bbox_to_anchor=None)
