"""Pictures of differences between two systems under several conditions."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.plots.canvas import colour_of, new_figure


def differences_figure(table: pd.DataFrame, axes_names: Mapping[str, str], title: str, note: str = "") -> Figure:
    """A panel for each condition: the difference of WER, with its interval, against the condition's value.

    Args:
        table: columns condition, value, and of the difference at that value difference, low, high (0.01 is a point).
        axes_names: label of each condition's axis; the panels are in this order.
    """
    figure, axes = new_figure(title, 4.0, n_columns=len(axes_names), note=note)
    for axis, (condition, label) in zip(axes[0], axes_names.items(), strict=True):
        rows = table[table["condition"] == condition].sort_values("value")
        at = np.arange(len(rows))
        axis.sharey(axes[0, 0])  # a difference looks as large in every panel
        axis.axhline(0, color="#888888", linewidth=0.8)
        axis.vlines(at, 100 * rows["low"], 100 * rows["high"], color=colour_of(0), linewidth=2)
        axis.plot(at, 100 * rows["difference"], color=colour_of(0), marker="o")
        axis.set_xticks(at, [f"{value:g}" for value in rows["value"]])
        axis.set_xlabel(label)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda points, _: f"{points:+.1f}"))
    axes[0, 0].set_ylabel("difference of WER, points")
    return figure
