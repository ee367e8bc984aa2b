"""A picture of what each expert is for: where its utterances come from, and how they differ from the rest."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.canvas import INK, heatmap, heatmap_height, new_figure

MEASURE_NAMES = {
    "duration_s": "duration",
    "words_per_s": "speaking rate",
    "loudness_db": "loudness",
    "severity": "severity",
    "pitch_hz": "pitch",
    "snr_db": "signal to noise",
}
UNITS = {"duration_s": "s", "words_per_s": "words/s", "loudness_db": "dB", "pitch_hz": "Hz", "snr_db": "dB"}
STRONGEST = 2.0  # standard deviations shown in full colour


def profiles_figure(
    profiles: pd.DataFrame, shares: pd.DataFrame, scores: pd.DataFrame, title: str = "What each expert is for", note: str = ""
) -> Figure:
    """Left: share of each group among an expert's utterances; right: its measures against the mean of all.

    Args:
        profiles, shares, scores: of `expert_profiles`, `group_shares` and `standard_scores`.
    """
    figure, axes = new_figure(title, heatmap_height(len(profiles)) + 0.6 + 0.1 * len(profiles), 1, 2, note)
    axes[0, 0].get_gridspec().set_width_ratios([max(2, shares.shape[1]), max(1, scores.shape[1])])
    shown = shares.copy()
    shown.index = [
        f"expert {row.expert}\n{row.n_utterances} utterances, {row.n_speakers} speakers" for row in profiles.itertuples()
    ]
    heatmap(
        axes[0, 0], shown, [[f"{100 * value:.0f} %" if value else "" for value in row] for row in shares.to_numpy()], high=1.0
    )
    axes[0, 0].set_title("where its utterances come from", fontsize=10, loc="left")
    _score_map(axes[0, 1], scores, profiles)
    for axis in axes[0]:
        axis.set_xticks(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()], rotation=30, ha="right")
    return figure


def _score_map(axis: Axes, scores: pd.DataFrame, profiles: pd.DataFrame) -> None:
    values, means = scores.to_numpy(np.float64), profiles[list(scores.columns)].to_numpy(np.float64)
    axis.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", vmin=-STRONGEST, vmax=STRONGEST, aspect="auto")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xticks(range(scores.shape[1]), [_with_unit(name) for name in scores.columns])
    axis.set_yticks([])
    axis.set_title("mean of its utterances, and\nstandard deviations from all", fontsize=10, loc="left")
    for row, column in np.ndindex(values.shape):
        if np.isfinite(values[row, column]):
            shade = "white" if abs(values[row, column]) > 0.5 * STRONGEST else INK
            axis.text(
                column,
                row,
                f"{means[row, column]:.3g}\n{values[row, column]:+.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color=shade,
            )


def _with_unit(name: str) -> str:
    return MEASURE_NAMES.get(name, name) + (f" ({UNITS[name]})" if name in UNITS else "")
