"""Pictures of routing: load and entropy over the epochs, load by group, and what each expert is for."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots.canvas import colour_of, heatmap, heatmap_height, legend, new_figure, percent_axis, rows_height, wrapped
from analysis.plots.errors import draw_forest

ROUTINGS = {
    "learned": "the gate",
    "oracle": "by etiology (oracle)",
    "cluster": "by cluster",
    "uniform": "all experts alike",
    "shared": "shared adapter alone",
    "random": "at random",
}  # as a picture names them; an expert alone by its number
HATCHES = ("", "//", "..", "xx")  # experts beyond the eighth share a colour and differ by hatch


def load_by_epoch(history: pd.DataFrame, title: str = "Expert load by epoch", note: str = "") -> Figure:
    """Stacked expert load and, below, routing entropy and the temperature under which the epoch was trained.

    Args:
        history: columns epoch, expert_0 … (loads summing to 1) and, if recorded, entropy and training_entropy (0 to 1),
            temperature, top_k.
    """
    experts = sorted((name for name in history.columns if name.startswith("expert_")), key=lambda name: int(name[7:]))
    lines = [name for name in ("entropy", "temperature") if name in history]
    figure, axes = new_figure(f"{title} ({len(experts)} experts)", 4.2 + 1.5 * len(lines), 1 + len(lines), 1, note)
    loads, bottom = history[experts].to_numpy(float).T, np.zeros(len(history))  # (E, n_epochs)
    for index, load in enumerate(loads):
        hatch = HATCHES[index // 8 % len(HATCHES)]
        axes[0, 0].bar(history["epoch"], load, 0.85, bottom=bottom, color=colour_of(index), label=str(index), hatch=hatch)
        bottom += load
    axes[0, 0].set_ylabel("load")
    axes[0, 0].set_ylim(0, 1)
    legend(axes[0, 0], "expert")
    axes[0, 0].get_gridspec().set_height_ratios([2.2] + [1] * len(lines))
    for name, axis in zip(lines, axes[1:, 0], strict=True):
        _line_by_epoch(axis, history, name)
    for axis in axes[:, 0]:
        axis.set_xlim(history["epoch"].min() - 0.6, history["epoch"].max() + 0.6)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[-1, 0].set_xlabel("epoch")
    percent_axis(axes[0, 0], "y")
    return figure


def _line_by_epoch(axis: Axes, history: pd.DataFrame, name: str) -> None:
    axis.plot(history["epoch"], history[name], color=colour_of(0), marker="o", markersize=4, label="dev")
    if name == "entropy":
        if "training_entropy" in history:
            axis.plot(
                history["epoch"], history["training_entropy"], color=colour_of(1), marker="s", markersize=4, label="in training"
            )
            legend(axis)
        axis.set_ylim(0, 1.02)
        axis.set_ylabel("gate's entropy\n(1: undecided)", fontsize=9)
        return
    axis.set_ylim(0.9, max(1.5, 1.15 * history[name].max()))
    axis.set_ylabel("temperature\nin training", fontsize=9)
    for epoch, top_k, height in zip(history["epoch"], history.get("top_k", []), history[name], strict=False):
        axis.annotate(f"top {top_k:g}", (epoch, height), (0, 5), textcoords="offset points", ha="center", fontsize=8)


def load_heatmap(
    loads: pd.DataFrame, title: str = "Expert load by etiology", note: str = "", counts: pd.Series | None = None
) -> Figure:
    """Mean routing weights, rows groups, columns experts (from `analysis.routing.load_by`); `counts` adds n to the row labels."""
    figure, axes = new_figure(title, heatmap_height(len(loads)), note=note)
    shown = loads.copy()
    if counts is not None:
        shown.index = [f"{group}  (n = {int(counts[group])})" for group in loads.index]
    shown.columns = [name.replace("_", " ") for name in loads.columns]
    heatmap(axes[0, 0], shown, [[f"{100 * value:.0f} %" for value in row] for row in loads.to_numpy()], high=1.0)
    return figure


def routing_over_epochs(loads: Mapping[int, pd.DataFrame], title: str = "Routing over the epochs", note: str = "") -> Figure:
    """Small multiples of `load_by` tables, one per epoch; at most twelve, evenly chosen, first and last always among them.

    Raises:
        ValueError: no epoch.
    """
    if not loads:
        raise ValueError("routing over epochs needs the load table of at least one epoch; got none")
    epochs = sorted(loads)
    epochs = [epochs[i] for i in sorted(set(np.linspace(0, len(epochs) - 1, min(12, len(epochs))).round().astype(int)))]
    n_columns = min(4, len(epochs))
    n_rows = -(-len(epochs) // n_columns)
    n_groups, names = len(loads[epochs[0]]), [str(name) for name in loads[epochs[0]].index]
    figure, axes = new_figure(title, 0.9 + n_rows * (0.6 + rows_height(names, 0.24)), n_rows, n_columns, note)
    for axis in axes.flat[len(epochs) :]:
        axis.set_visible(False)
    for index, (axis, epoch) in enumerate(zip(axes.flat, epochs, strict=False)):
        table = loads[epoch]
        axis.imshow(table.to_numpy(float), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.grid(False)
        axis.set_title(f"epoch {epoch}", fontsize=9, loc="left")
        shown = [wrapped(str(name)) for name in table.index] if index % n_columns == 0 else [""] * n_groups
        axis.set_yticks(range(n_groups), shown, fontsize=8)
        axis.set_xticks(range(table.shape[1]), range(table.shape[1]), fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("expert", fontsize=8)
    return figure


def ablation_figure(table: pd.DataFrame, title: str = "WER by way of routing", note: str = "", place: int = 2) -> Figure:
    """WER of each way of routing with its interval: columns routing, wer, low, high; rows in the order given.

    Args:
        place: of the mixture among the colours.
    """
    figure, axes = new_figure(title, 1.6 + 0.4 * len(table), note=note)
    names = [ROUTINGS.get(name, name.replace("_", " ")) for name in table["routing"]]
    draw_forest(axes[0, 0], names, table, [place] * len(table))
    return figure
