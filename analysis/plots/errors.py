"""Pictures of error rates: WER by group with its interval, several systems side by side, expert by etiology."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.plots.canvas import (
    colour_of,
    heatmap,
    heatmap_height,
    legend,
    legend_height,
    marker_of,
    new_figure,
    percent_axis,
    rows_height,
    wrapped,
)

MOST_ROWS = 60  # of a forest plot; a table holds the rest


def forest_figure(rates: pd.DataFrame, title: str = "WER by group", note: str = "", place: int = 0) -> Figure:
    """WER of each group with its interval over speakers (result of `analysis.error_rates.rates_by`); small groups hollow.

    Args:
        place: of the system among the colours.
    """
    if len(rates) > MOST_ROWS:
        title = f"{title}, the {MOST_ROWS} highest of {len(rates)}"
        rates = rates.sort_values("wer", ascending=False, kind="stable").head(MOST_ROWS)
    labels = [f"{row.group}  (n = {row.n_utterances}, {row.n_speakers} sp.)" for row in rates.itertuples()]
    figure, axes = new_figure(title, 1.5 + rows_height(labels, 0.36 if len(rates) <= 20 else 0.24), note=note)
    draw_forest(axes[0, 0], labels, rates, [place] * len(rates))
    if "small" in rates and rates["small"].any():
        axes[0, 0].set_xlabel("WER, bars: 95 % interval over speakers; hollow: small group")
    return figure


def draw_forest(axis: Axes, labels: Sequence[str], rates: pd.DataFrame, places: Sequence[int] | None = None) -> None:
    """Points with interval bars, first row on top; a row without interval has no bar. `places` are those of the rows among the colours."""
    colours = [colour_of(place) for place in places or [0] * len(rates)]
    rows = np.arange(len(rates))[::-1]
    small = rates["small"].to_numpy(bool) if "small" in rates else np.zeros(len(rates), bool)
    axis.hlines(rows, rates["low"].fillna(rates["wer"]), rates["high"].fillna(rates["wer"]), color=colours, linewidth=2)
    axis.scatter(rates["wer"], rows, s=45, zorder=3, edgecolors=colours, c=np.where(small, "white", colours))
    top = float(np.nanmax([rates["wer"].max(), rates["high"].max(), 0.01]))
    for row, rate, high in zip(rows, rates["wer"], rates["high"].fillna(rates["wer"]), strict=True):
        axis.text(high + 0.015 * top, row, f"{100 * rate:.1f} %", va="center", fontsize=9)
    axis.set_yticks(rows, [wrapped(label) for label in labels])
    axis.set_xlim(0, 1.12 * top)
    axis.set_ylim(-0.6, len(rates) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("WER, bars: 95 % interval over speakers")
    percent_axis(axis)


def systems_figure(
    rates: pd.DataFrame, title: str = "WER by group and system", note: str = "", places: Mapping[str, int] | None = None
) -> Figure:
    """Several systems side by side for each group: columns system, group, n_utterances, wer, low, high; orders as they come.

    Args:
        places: of the systems among the colours; None takes their order.
    """
    systems, groups = list(dict.fromkeys(rates["system"])), list(dict.fromkeys(rates["group"]))
    n_utterances = rates.groupby("group")["n_utterances"].max()
    step = 1.0 / (len(systems) + 1)
    height = max(1.4 + len(groups) * (0.25 + 0.16 * len(systems)), legend_height(systems))
    figure, axes = new_figure(title, height, note=note)
    axis = axes[0, 0]
    for index, system in enumerate(systems):
        place = index if places is None else places[system]
        rows = rates[rates["system"] == system].set_index("group").reindex(groups)
        at = len(groups) - 1 - np.arange(len(groups)) + (len(systems) - 1) * step / 2 - index * step
        axis.hlines(at, rows["low"].fillna(rows["wer"]), rows["high"].fillna(rows["wer"]), color=colour_of(place), linewidth=1.8)
        axis.plot(rows["wer"], at, linestyle="", color=colour_of(place), marker=marker_of(place), markersize=6, label=system)
    for line in range(1, len(groups)):
        axis.axhline(line - 0.5, color="#DDDDDD", linewidth=0.8)
    axis.set_yticks(range(len(groups) - 1, -1, -1), [wrapped(f"{group}  (n = {int(n_utterances[group])})") for group in groups])
    axis.set_ylim(-0.5, len(groups) - 0.5)
    axis.set_xlim(left=0)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("WER, bars: 95 % interval over speakers")
    percent_axis(axis)
    legend(axis, "system")
    return figure


def expert_wer_heatmap(
    table: pd.DataFrame, title: str = "WER of each expert alone, by etiology", note: str = "", by_row: bool = False
) -> Figure:
    """WER with rows experts and columns groups; the best expert of each group is framed.

    Args:
        by_row: rows are mixtures and columns their experts: the best of each row is framed.
    """
    figure, axes = new_figure(title, heatmap_height(len(table)), note=note)
    values = table.to_numpy(float)
    texts = [["" if np.isnan(value) else f"{100 * value:.1f}" for value in row] for row in values]
    heatmap(axes[0, 0], table, texts, colours="Oranges")
    lines = values if by_row else values.T
    for place, line in enumerate(lines):
        if np.isfinite(line).any():
            best = int(np.nanargmin(line))
            axes[0, 0].add_patch(_frame(best, place) if by_row else _frame(place, best))
    axes[0, 0].set_xlabel(f"WER in %; framed: best expert of the {'mixture' if by_row else 'group'}")
    return figure


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, fill=False, edgecolor=colour_of(0), linewidth=2)
