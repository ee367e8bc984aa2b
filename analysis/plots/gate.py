"""Pictures of a gate: how well it is calibrated, what it confuses, and how it decides about each speaker."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import INK, colour_of, heatmap, heatmap_height, new_figure, percent_axis

MOST_SPEAKERS = 40  # rows that a picture of speakers can hold


def reliability_figure(
    table: pd.DataFrame,
    calibration_error: float,
    title: str = "Reliability of the gate",
    note: str = "",
    rejected: tuple[pd.DataFrame, float] | None = None,
    is_calibrated: bool = False,
) -> Figure:
    """Accuracy against confidence with the diagonal of a perfect gate; below it how many utterances each bin holds.

    Args:
        table: of `reliability`, for the gate as it is kept.
        rejected: the same table and error of the gate as it is not kept, with or without calibration, drawn beside it.
        is_calibrated: whether the gate is kept with its calibration.
    """
    names = ("calibrated", "not calibrated") if is_calibrated else ("not calibrated", "calibrated")
    error = f"calibration error {100 * calibration_error:.1f} %"
    if rejected:
        error = f"calibration error, {names[0]} as kept: {100 * calibration_error:.1f} %, {names[1]}: {100 * rejected[1]:.1f} %"
    figure, axes = new_figure(f"{title} (n = {int(table['n_utterances'].sum())}; {error})", 5.4, 2, 1, note)
    axes[0, 0].get_gridspec().set_height_ratios([3, 1])
    width = table["high"] - table["low"]
    used = table["n_utterances"] > 0
    axes[0, 0].bar(
        table["low"], table["accuracy"].fillna(0), width, align="edge", color=colour_of(0), alpha=0.35, edgecolor="white"
    )
    if rejected:
        other = rejected[0][rejected[0]["n_utterances"] > 0]
        axes[0, 0].plot(other["confidence"], other["accuracy"], color=INK, marker="s", label=f"{names[1]}, not kept")
    name = f"{names[0]}, kept" if rejected else "measured"
    axes[0, 0].plot(table["confidence"][used], table["accuracy"][used], color=colour_of(0), marker="o", label=name)
    axes[0, 0].plot([0, 1], [0, 1], color="#777777", linestyle="--", label="perfect calibration")
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    axes[1, 0].bar(table["low"], table["n_utterances"], width, align="edge", color=colour_of(0), edgecolor="white")
    axes[1, 0].set_ylabel("utterances")
    axes[1, 0].set_xlabel("confidence (largest probability)")
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
    right = np.trace(values) / values.sum() if list(table.index) == list(table.columns) and values.sum() else None
    said = f"{title} (n = {int(values.sum())}" + (f", {100 * right:.1f} % on the diagonal)" if right is not None else ")")
    figure, axes = new_figure(said, heatmap_height(len(table)), note=note)
    shares.index = [f"{name}  (n = {int(total)})" for name, total in table.sum(axis=1).items()]
    heatmap(axes[0, 0], shares, [[f"{count}" if count else "" for count in row] for row in values], high=1.0)
    axes[0, 0].set_ylabel(str(table.index.name or ""))
    axes[0, 0].set_xlabel(str(table.columns.name or "expert"))
    return figure


def speakers_figure(decisions: pd.DataFrame, title: str = "The gate on speakers unseen in training", note: str = "") -> Figure:
    """Mean probability of each expert (columns) for each speaker (rows, by etiology); of many speakers the least decided are shown.

    Args:
        decisions: of `speaker_decisions`.
    """
    shown = decisions
    if len(decisions) > MOST_SPEAKERS:
        shown = (
            decisions.sort_values(["agreement", "confidence", "speaker"]).head(MOST_SPEAKERS).sort_values(["etiology", "speaker"])
        )
        title += f": the {MOST_SPEAKERS} least decided of {len(decisions)}"
    experts = [name for name in decisions.columns if name.startswith("expert_")]
    table = shown[experts].set_axis([name.removeprefix("expert_") for name in experts], axis=1)
    table.index = [f"{row.etiology} · {row.speaker}  ({row.agreement:.0%} of {row.n_utterances})" for row in shown.itertuples()]
    figure, axes = new_figure(title, min(14.0, 1.7 + 0.27 * len(table)), note=note)
    heatmap(
        axes[0, 0],
        table,
        [[f"{100 * value:.0f}" if value >= 0.005 else "" for value in row] for row in table.to_numpy()],
        high=1.0,
    )
    axes[0, 0].tick_params(axis="y", labelsize=8)
    axes[0, 0].set_xlabel("expert; in the cells its mean probability, %")
    axes[0, 0].set_title("beside each speaker: the share of so many utterances that one expert gets", fontsize=9, loc="left")
    return figure
