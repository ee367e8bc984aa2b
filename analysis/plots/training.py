"""Pictures of training: any metrics against the epoch, and one metric of several runs overlaid."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots.canvas import colour_of, legend, legend_height, marker_of, new_figure, percent_axis

START = "epoch (0: the start)"
RATES = {"wer": "WER", "cer": "CER"}
MANY_POINTS = 40  # above this a line carries no markers
STAGES = {"asr": "joint training", "experts": "expert training"}
ALL = "all"  # the line that the lines of parts add up to
BLACK = -1  # among the colours, from their end: no system's
MOST_INSIDE = 2  # lines whose names fit into a panel


def training_curves(
    history: pd.DataFrame,
    panels: Mapping[str, Sequence[str]],
    title: str = "Training",
    x: str = "epoch",
    best: float | None = None,
    note: str = "",
    place: int = 0,
) -> Figure:
    """Panels of metrics against the epoch.

    Args:
        history: one row per epoch (or update), column `x` and one column per metric; gaps (NaN) are bridged.
        panels: panel title → the columns drawn in it; a title with "WER", "CER", "accuracy", "load" or "blank" is shown in percent.
        best: the kept epoch, marked.
        place: of the system among the colours, that of a panel's first line; a panel's only line is named by its title.

    Raises:
        ValueError: a column named is not in the history.
    """
    missing = sorted({name for names in panels.values() for name in names} - set(history.columns))
    if missing or x not in history.columns:
        raise ValueError(f"training history lacks {', '.join(missing or [x])}; it has {', '.join(map(str, history.columns))}")
    figure, axes = new_figure(title, 3.9, 1, max(1, len(panels)), note)
    x_name = START if x == "epoch" and history[x].min() == 0 else x
    crowded = any(len(columns) > MOST_INSIDE for columns in panels.values())
    for axis, (name, columns) in zip(axes[0], panels.items(), strict=False):
        for column, colour in zip(columns, _places(columns, place), strict=True):
            label = line_name(column, columns) if len(columns) > 1 else ""
            _line(axis, history[[x, column]].dropna(), label, colour)
        axis.set_xlim(_margins(history[x]))
        _finish(axis, name, x_name, best, outside=crowded, named=not crowded or axis is axes[0, -1])
    return figure


def _places(columns: Sequence[str], place: int) -> list[int]:
    """Places of a panel's lines among the colours.

    The line of all parts is black, and each part has the colour that it has on the map of clusters. A second metric of one system is black.
    """
    parts = range(len(columns) - 1)
    if len(columns) > 1 and line_name(columns[0], columns) == ALL:
        return [BLACK, *parts]
    return [place, *(BLACK - part for part in parts)]


def _margins(values: pd.Series) -> tuple[float, float]:
    """Limits of an axis that is the same for all panels, also where one has no value of the start."""
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def line_name(column: str, columns: Sequence[str]) -> str:
    """What a line is called beside others: what they have in common stands in the panel's title."""
    first, _, rest = column.partition("/")
    firsts, rests = ({name.partition("/")[place] for name in columns} for place in (0, 2))
    if len(columns) == 1:
        return column
    if len(firsts) == 1:
        return rest.replace("_", " ") or ALL
    return RATES.get(column, first if len(rests) == 1 and rest else column)


def overlaid_curves(
    histories: Mapping[str, pd.DataFrame],
    column: str,
    x: str = "epoch",
    title: str = "",
    note: str = "",
    places: Mapping[str, int] | None = None,
) -> Figure:
    """One metric of several runs over the epochs; runs without the metric are named in the title rather than left out unsaid.

    Args:
        histories: by run; a column `stage` names the stage that begins at a row, which is marked.
        places: of the runs among the colours; None takes their order.
    """
    have = {name: history.dropna(subset=[column]) for name, history in histories.items() if column in history.columns}
    without = sorted(set(histories) - set(have))
    words = in_words(column)
    said = (title or f"{words[0].upper()}{words[1:]} by {x}") + (f" (not recorded: {', '.join(without)})" if without else "")
    figure, axes = new_figure(said, max(4.5, legend_height(have)), note=note)
    for index, (name, history) in enumerate(have.items()):
        place = places[name] if places else index
        _line(axes[0, 0], history[[x, column]].dropna(), name, place)
    for index, (name, history) in enumerate(have.items()):
        _mark_stages(axes[0, 0], history, x, places[name] if places else index, index)
    has_start = x == "epoch" and any(history[x].min() == 0 for history in have.values())
    _finish(axes[0, 0], words, f"{x}s of all stages" + (" (0: the start)" if has_start else ""), None, outside=True)
    return figure


def in_words(column: str) -> str:
    """A metric as a title says it: `dev/wer` → "WER on dev"."""
    split, _, name = column.partition("/")
    return f"{RATES.get(name, name.replace('_', ' '))} on {split}" if name else column


def _mark_stages(axis: Axes, history: pd.DataFrame, x: str, place: int, line: int) -> None:
    """The name of each stage behind the first at the top of a dotted line, where the one before it ends, one below the other."""
    if "stage" not in history:
        return
    begins = history.assign(**{x: history[x].shift()})[history["stage"].notna()].iloc[1:]
    for at, stage in zip(begins[x], begins["stage"], strict=True):
        axis.axvline(at, color=colour_of(place), linestyle=":", linewidth=1)
        text = f"{STAGES.get(stage, stage)} begins"
        left, right = axis.get_xlim()
        side = "left" if at < (left + right) / 2 else "right"  # of the line, where there is room
        axis.annotate(text, (at, 1), (4 if side == "left" else -4, -9 - 11 * line), ("data", "axes fraction"), "offset points",
                      ha=side, fontsize=8, color=colour_of(place))  # fmt: skip


def from_start(history: pd.DataFrame, start: Mapping[str, float]) -> pd.DataFrame:
    """Metrics by epoch, counted from 1, behind what is known of the start, as epoch 0."""
    later = history.assign(epoch=history["epoch"] + 1)
    return pd.concat([pd.DataFrame([{"epoch": 0, **start}]), later], ignore_index=True)


def drawable(history: pd.DataFrame, panels: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The panels that have a line, with their lines of two points at least; a single dot is a number, not a curve."""
    lines = {title: [name for name in columns if history[name].notna().sum() > 1] for title, columns in panels.items()}
    return {title: columns for title, columns in lines.items() if columns}


def _line(axis: Axes, points: pd.DataFrame, label: str, index: int) -> None:
    marker = marker_of(index) if len(points) <= MANY_POINTS else None
    axis.plot(points.iloc[:, 0], points.iloc[:, 1], color=colour_of(index), marker=marker, markersize=4, label=label)


def _finish(axis: Axes, name: str, x: str, best: float | None, outside: bool = False, named: bool = True) -> None:
    axis.set_title(name, fontsize=10, loc="left")
    axis.set_xlabel(x)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if best is not None:
        axis.axvline(best, color="#777777", linestyle=":", label=f"kept: {best:g}")
    named = named and bool(axis.get_legend_handles_labels()[0])
    if any(word in name.lower() for word in ("wer", "cer", "accuracy", "load", "blank")):
        percent_axis(axis, "y")
    if outside and named:
        legend(axis)
    elif named:
        legend(axis, loc="best", bbox_to_anchor=None)
