"""Pictures of several systems: overall WER with intervals, and WER against what a system costs."""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.plots.canvas import colour_of, legend, legend_height, marker_of, new_figure, percent_axis, rows_height
from analysis.plots.errors import draw_forest

COST_NAMES = {
    "n_trainable": "trainable parameters",
    "n_total": "parameters in all",
    "real_time_factor": "seconds of decoding by second of audio, batch after batch: of one processor core, or of the accelerator",
    "training_hours": "hours of training: of one processor core, or of the accelerator",
    "peak_memory_mb": "most memory held while decoding, MB: of the process, or on the accelerator",
}

COUNTS = ("n_trainable", "n_total")
LABEL_WIDTH = 105  # characters of a line under the axis


def overall_figure(
    table: pd.DataFrame, title: str = "WER of each system", note: str = "", places: Mapping[str, int] | None = None
) -> Figure:
    """One row per system: columns system, n_utterances, n_speakers, wer, low, high; `places` of the systems among the colours."""
    labels = [f"{row.system}" for row in table.itertuples()]
    first = table.iloc[0]
    said = f"{title} (n = {int(first['n_utterances'])}, {int(first['n_speakers'])} speakers)"
    figure, axes = new_figure(said, 1.6 + rows_height(labels, 0.42), note=note)
    draw_forest(axes[0, 0], labels, table, [places[system] for system in table["system"]] if places else None)
    return figure


def tradeoff_figure(
    table: pd.DataFrame,
    cost: str = "n_trainable",
    title: str = "",
    note: str = "",
    places: Mapping[str, int] | None = None,
    noise: float = 0.0,
) -> Figure:
    """WER against a cost column; systems for which it is not known are named under the axis.

    Args:
        places: of the systems among the colours.
        noise: by how much two measurements of one system may differ, as a share; said under the axis.
    """
    known = table[table[cost].notna()]
    name = COST_NAMES.get(cost, cost.replace("_", " "))
    figure, axes = new_figure(
        title or f"WER against {name.partition(',')[0].partition(':')[0]}", max(4.5, legend_height(known["system"])), note=note
    )
    axis = axes[0, 0]
    for index, row in enumerate(known.itertuples()):
        bars = np.array([[max(0.0, row.wer - row.low)], [max(0.0, row.high - row.wer)]])
        place = places[row.system] if places else index
        axis.errorbar([getattr(row, cost)], [row.wer], yerr=np.nan_to_num(bars), color=colour_of(place), marker=marker_of(place),
                      markersize=8, capsize=3, linestyle="", label=row.system)  # fmt: skip
    unknown = table[table[cost].isna()]["system"].tolist()
    said = [name, *([f"two measurements differ by up to {noise:.0%}"] if noise else [])]
    said += [f"not known: {', '.join(unknown)}"] if unknown else []
    axis.set_xlabel(fill("; ".join(said), LABEL_WIDTH))
    if len(known) and known[cost].min() >= 0 and known[cost].max() > 100 * max(known[cost].min(), 1):
        axis.set_xscale("symlog", linthresh=max(float(known[cost][known[cost] > 0].min()) / 10, 1e-9))
    elif len(known) and known[cost].min() >= 0:
        axis.set_xlim(0, 1.08 * max(known[cost].max(), 1e-9))  # from zero: a cost twice as high stands twice as far
    if cost in COUNTS:
        axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_ylabel("WER")
    axis.set_ylim(bottom=0)
    percent_axis(axis, "y")
    if len(known):
        legend(axis, "system")
    return figure
