"""Pictures of a clustering: the embeddings in the plane, clusters against etiologies, the sweep over the number of clusters."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.clusters import NOISE
from analysis.plots.canvas import NOISE_COLOUR, colour_of, heatmap, heatmap_height, legend, marker_of, new_figure

PANELS_A_ROW = 3


def embedding_map(
    points: np.ndarray,
    clusters: np.ndarray,
    groups: np.ndarray,
    title: str = "Embeddings",
    group_name: str = "etiology",
    note: str = "",
    sent_to: np.ndarray | None = None,
    fate: str = "",
    axis_names: tuple[str, str] = ("", ""),
) -> Figure:
    """Points in the plane, left coloured by cluster (noise as crosses, grey or of the cluster they were sent to), right by group.

    Args:
        points: (n_points, 2).
        clusters: (n_points,), −1 for noise.
        groups: (n_points,) names.
        sent_to: (n_points,) the cluster of each point after noise has met its fate; None where it was sent to none.
        fate: what became of noise, in a word.
        axis_names: what the two axes are.

    Raises:
        ValueError: the shapes do not fit.
    """
    points, clusters, groups = np.asarray(points), np.asarray(clusters), np.asarray(groups).astype(str)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) == len(clusters) == len(groups):
        raise ValueError(f"points {points.shape}, clusters {clusters.shape}, groups {groups.shape}: need (n, 2), (n,), (n,)")
    n_noise = int((clusters == NOISE).sum())
    said = f"{title} (n = {len(points)}, {len(set(clusters.tolist()) - {NOISE})} clusters, {n_noise} noise)"
    key_height = 0.2 + 0.2 * -(-max(len(set(clusters.tolist())), len(set(groups.tolist()))) // 2)  # inches, two names a line
    figure, axes = new_figure(said, 5.0 + key_height, 2, 2, note)
    axes[0, 0].get_gridspec().set_height_ratios([4.5, key_height])
    noise = (NOISE_COLOUR if sent_to is None else _colours(clusters, np.asarray(sent_to)), f"noise → {fate}" if fate else "noise")
    for column, (labels, name) in enumerate(((clusters, "cluster"), (groups, group_name))):
        _scatter(axes[0, column], axes[1, column], points, labels, name, noise)
        axes[0, column].set_xlabel(axis_names[0], fontsize=9)
        axes[0, column].set_ylabel(axis_names[1], fontsize=9)
    return figure


def cluster_heatmap(table: pd.DataFrame, title: str = "Clusters and etiologies", note: str = "") -> Figure:
    """Counts of a cluster × group table; colour is the share of the group (column), so that columns compare."""
    shares = table / table.sum(axis=0).replace(0, np.nan)
    figure, axes = new_figure(f"{title} (n = {int(table.to_numpy().sum())})", heatmap_height(len(table)), note=note)
    texts = [[f"{count}" if count else "" for count in row] for row in table.to_numpy()]
    shares.index = ["noise" if cluster == NOISE else f"cluster {cluster}" for cluster in table.index]
    shares.columns = [f"{group}\nn = {int(total)}" for group, total in table.sum(axis=0).items()]
    heatmap(axes[0, 0], shares, texts, high=1.0)
    return figure


def sweep_figure(sweep: pd.DataFrame, chosen: int | None = None, title: str = "How many experts", note: str = "") -> Figure:
    """Scores against the number of experts: column `n_experts`, every other numeric column one panel; `chosen` is marked."""
    scores = [name for name in sweep.select_dtypes("number").columns if name != "n_experts"]
    said = title + (f" (dotted: {chosen} chosen)" if chosen is not None else "")
    n_rows = max(1, -(-len(scores) // PANELS_A_ROW))
    figure, axes = new_figure(said, 0.8 + 2.4 * n_rows, n_rows, min(PANELS_A_ROW, max(1, len(scores))), note)
    for axis in axes.flat[len(scores) :]:
        axis.set_axis_off()
    for index, (axis, score) in enumerate(zip(axes.flat, scores, strict=False)):
        axis.plot(sweep["n_experts"], sweep[score], color=colour_of(index), marker=marker_of(index))
        axis.set_title(score.replace("_", " "), fontsize=10, loc="left")
        axis.set_xlabel("experts")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if chosen is not None:
            axis.axvline(chosen, color="#777777", linestyle=":")
    return figure


def _colours(clusters: np.ndarray, sent_to: np.ndarray) -> list[str]:
    """Colour of each noise point: that of the cluster it was sent to."""
    names = sorted(set(clusters.tolist()) - {NOISE})
    place = {name: index for index, name in enumerate([*names, *sorted(set(sent_to.tolist()) - set(names))])}
    return [colour_of(place[name]) for name in sent_to[clusters == NOISE].tolist()]


def _scatter(axis: Axes, key: Axes, points: np.ndarray, labels: np.ndarray, name: str, noise_style: tuple[object, str]) -> None:
    """Points on `axis`, their legend on `key` below, so that a long legend does not squeeze one map more than the other."""
    size = float(np.clip(12_000 / len(points), 9, 60))  # to be seen in a picture 900 pixels wide
    for index, label in enumerate(sorted(set(labels.tolist()))):
        here = points[labels == label]
        noise = label == NOISE
        index -= int(np.any(labels == NOISE)) if labels.dtype.kind in "iu" else 0  # noise comes first and takes no colour
        style = {"color": noise_style[0], "marker": "x"} if noise else {"color": colour_of(index), "marker": marker_of(index)}
        text = f"{noise_style[1] if noise else label} ({len(here)})"
        axis.scatter(here[:, 0], here[:, 1], s=size, alpha=0.75, linewidths=0.8 if noise else 0, label=text, **style)
    axis.set_title(f"by {name}", fontsize=10, loc="left")
    axis.set_xticks([])
    axis.set_yticks([])
    key.set_axis_off()
    scale = max(1.0, 5 / np.sqrt(size))
    n_columns = 3 if max(len(str(handle.get_label())) for handle in axis.collections) <= 14 else 2
    made = legend(key, loc="upper left", bbox_to_anchor=(0.0, 1.0), handles=axis.collections, ncols=n_columns, markerscale=scale)
    made.set_in_layout(False)
