"""Pictures of a manifest: how long the utterances are, how many words, how much of each etiology in each split; spectrograms."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.hypotheses import groups_of
from analysis.plots.canvas import colour_of, legend, new_figure, rows_height, wrapped

SPLITS = ("train", "dev", "test")
LONGEST_SHARE = 0.995  # a histogram ends at this quantile; the utterances beyond are counted in its label


def durations_figure(manifest: pd.DataFrame, note: str = "") -> Figure:
    """Histogram of `duration_s`, one colour per split, stacked."""
    return _histogram(manifest, manifest["duration_s"].to_numpy(float), "Duration of utterances", "seconds", None, note)


def words_figure(manifest: pd.DataFrame, note: str = "") -> Figure:
    """Histogram of words in `reference`, one colour per split, stacked."""
    n_words = manifest["reference"].str.split().str.len().to_numpy(float)
    return _histogram(manifest, n_words, "Words by utterance", "words in the reference", 1.0, note)


def amounts_figure(manifest: pd.DataFrame, note: str = "", column: str = "etiology") -> Figure:
    """Utterances and minutes of each etiology, stacked by split; speakers in the labels."""
    groups = groups_of(manifest, column).astype(str)
    names = sorted(groups.unique(), reverse=True)
    n_speakers = manifest.groupby(groups)["speaker"].nunique()
    title = f"Utterances and minutes by {column} (n = {len(manifest)}, {manifest['speaker'].nunique()} speakers)"
    labels = [f"{name}  ({n_speakers[name]} sp.)" for name in names]
    figure, axes = new_figure(title, 1.8 + rows_height(labels, 0.45), 1, 2, note)
    counts = pd.crosstab(groups, manifest["split"])
    minutes = manifest.pivot_table(index=groups, columns="split", values="duration_s", aggfunc="sum", observed=True) / 60
    for axis, table, label in zip(axes[0], (counts, minutes), ("utterances", "minutes"), strict=True):
        _stacked_bars(axis, table.reindex(names).fillna(0.0))
        axis.set_xlabel(label)
    axes[0, 0].set_yticks(range(len(names)), [wrapped(label) for label in labels])
    axes[0, 1].set_yticks(range(len(names)), [""] * len(names))
    legend(axes[0, 1], "split")
    return figure


def spectrograms_figure(
    spectrograms: Sequence[np.ndarray], titles: Sequence[str], frame_s: float, title: str = "Example utterances", note: str = ""
) -> Figure:
    """A grid of log-mel spectrograms.

    Args:
        spectrograms: each (n_mels, n_frames).
        titles: one line over each.
        frame_s: seconds from frame to frame.

    Raises:
        ValueError: not one title per spectrogram, or none at all.
    """
    if not spectrograms or len(spectrograms) != len(titles):
        raise ValueError(f"{len(spectrograms)} spectrograms and {len(titles)} titles; need one title for each of at least one")
    n_columns = min(3, len(spectrograms))
    n_rows = -(-len(spectrograms) // n_columns)
    figure, axes = new_figure(title, 0.8 + 2.0 * n_rows, n_rows, n_columns, note)
    for axis in axes.flat[len(spectrograms) :]:
        axis.set_visible(False)
    for axis, mel, label in zip(axes.flat, spectrograms, titles, strict=False):
        axis.imshow(mel, origin="lower", aspect="auto", cmap="magma", extent=(0, mel.shape[1] * frame_s, 0, mel.shape[0]))
        axis.grid(False)
        axis.set_title(label, fontsize=9, loc="left")
        axis.set_xlabel("s", fontsize=8)
    for row in axes:
        row[0].set_ylabel("mel band", fontsize=8)
    return figure


def splits_of(manifest: pd.DataFrame) -> list[str]:
    """Splits present, train, dev, test first."""
    present = set(manifest["split"])
    return [split for split in SPLITS if split in present] + sorted(present - set(SPLITS))


def _histogram(manifest: pd.DataFrame, values: np.ndarray, title: str, label: str, width: float | None, note: str) -> Figure:
    figure, axes = new_figure(f"{title} (n = {len(values)}, median {np.median(values):.3g})", note=note)
    end = max(float(np.quantile(values, LONGEST_SHARE)), 1e-3)
    edges = np.arange(values.min() - 0.5, end + 1.5, max(width, round(end / 60))) if width else np.linspace(0, end, 41)
    splits = splits_of(manifest)
    parts = [values[(manifest["split"] == split).to_numpy()] for split in splits]
    names = [f"{split} (n = {len(part)})" for split, part in zip(splits, parts, strict=True)]
    axes[0, 0].hist(parts, bins=edges, stacked=True, color=[colour_of(i) for i in range(len(splits))], label=names)
    n_beyond = int((values > edges[-1]).sum())
    axes[0, 0].set_xlabel(label + (f"; {n_beyond} longer than {edges[-1]:.3g} are not shown" if n_beyond else ""))
    axes[0, 0].set_ylabel("utterances")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=width is not None))
    legend(axes[0, 0], "split")
    return figure


def _stacked_bars(axis: Axes, table: pd.DataFrame) -> None:
    left = np.zeros(len(table))
    order = [split for split in SPLITS if split in table] + sorted(set(table) - set(SPLITS))
    for index, split in enumerate(order):
        values = table[split].to_numpy(float)
        axis.barh(range(len(table)), values, left=left, color=colour_of(index), label=split, height=0.7)
        left += values
    axis.grid(axis="y", visible=False)
