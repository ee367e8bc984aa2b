"""Pictures of a gate: is it as sure as it is right, and what does it confuse."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import colour_of, heatmap, heatmap_height, new_figure, percent_axis


def reliability_figure(
    table: pd.DataFrame, calibration_error: float, title: str = "Reliability of the gate", note: str = ""
) -> Figure:
    """Accuracy against confidence with the diagonal of a perfect gate; below it how many utterances each bin holds."""
    n_utterances = int(table["n_utterances"].sum())
    said = f"{title} (n = {n_utterances}, calibration error {100 * calibration_error:.1f} %)"
    figure, axes = new_figure(said, 5.4, 2, 1, note)
    axes[0, 0].get_gridspec().set_height_ratios([3, 1])
    width = table["high"] - table["low"]
    used = table["n_utterances"] > 0
    axes[0, 0].bar(
        table["low"], table["accuracy"].fillna(0), width, align="edge", color=colour_of(0), alpha=0.35, edgecolor="white"
    )
    axes[0, 0].plot(table["confidence"][used], table["accuracy"][used], color=colour_of(0), marker="o", label="gate")
    axes[0, 0].plot([0, 1], [0, 1], color="#777777", linestyle="--", label="as sure as right")
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    axes[1, 0].bar(table["low"], table["n_utterances"], width, align="edge", color=colour_of(0), edgecolor="white")
    axes[1, 0].set_ylabel("utterances")
    axes[1, 0].set_xlabel("confidence (largest routing weight)")
    for axis in axes[:, 0]:
        axis.set_xlim(0, 1)
        percent_axis(axis, "x")
    axes[0, 0].set_ylim(0, 1.02)
    percent_axis(axes[0, 0], "y")
    return figure


def confusion_figure(table: pd.DataFrame, title: str = "Cluster and chosen expert", note: str = "") -> Figure:
    """Counts by true cluster or group (rows) and expert (columns); colour is the share of the row."""
    values = table.to_numpy()
    shares = table / table.sum(axis=1).replace(0, np.nan).to_numpy()[:, None]
    right = np.trace(values) / values.sum() if values.shape[0] == values.shape[1] and values.sum() else None
    said = f"{title} (n = {int(values.sum())}" + (f", {100 * right:.1f} % on the diagonal)" if right is not None else ")")
    figure, axes = new_figure(said, heatmap_height(len(table)), note=note)
    shares.index = [f"{name}  (n = {int(total)})" for name, total in table.sum(axis=1).items()]
    heatmap(axes[0, 0], shares, [[f"{count}" if count else "" for count in row] for row in values], high=1.0)
    axes[0, 0].set_ylabel(str(table.index.name or ""))
    axes[0, 0].set_xlabel(str(table.columns.name or "expert"))
    return figure
