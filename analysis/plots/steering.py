"""Pictures of steering: how each layer steers from update to update, and which vectors the kept model uses."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.canvas import COLOURS, colour_of, heatmap, legend, marker_of, new_figure

PANELS = {
    "scale": "scale of each layer; document 002: 0.05 to 0.2",
    "strength": "‖steering‖ / ‖hidden state‖",
    "norm": "mean norm of the vectors",
    "entropy_of_use": "entropy of mean use, nats",
    "entropy_of_decisions": "mean entropy of a decision, nats",
    "mutual_information": "mutual information of use and etiology, nats",
}
CHOICES = ("entropy_of_use", "entropy_of_decisions", "mutual_information")  # 0 for ever where there is one vector
SCALES = (0.05, 0.2)
MOST_LINES = len(COLOURS)


def history_figure(analyses: pd.DataFrame, note: str = "") -> Figure:
    """A panel for each measure, over the updates a line for each layer, or of many layers a row of a heatmap for each.

    Args:
        analyses: one row per analysis: `update`, `steering/<measure>/layer_<l>` and `steering/use/layer_<l>/expert_<e>`.
    """
    chooses = any(name.endswith("/expert_1") for name in analyses.columns)
    panels = {measure: title for measure, title in PANELS.items() if chooses or measure not in CHOICES}
    figure, axes = new_figure("Steering by layer and update", 9.0, 3, len(panels) // 3, note)
    for axis, (measure, title) in zip(axes.flat, panels.items(), strict=True):
        layers = _layers(analyses, measure)
        (_lines if len(layers) <= MOST_LINES else _rows)(axis, analyses["update"], analyses[list(layers.values())], list(layers))
        axis.set_title(title, fontsize=10, loc="left")
        if measure == "scale" and len(layers) <= MOST_LINES:
            _claimed(axis)
    for axis in axes.flat:
        axis.locator_params(axis="x", integer=True)
    for axis in axes[-1]:
        axis.set_xlabel("update")
    if axes[0, -1].get_lines():
        legend(axes[0, -1], "layer")
    return figure


def dev_figure(measures: Mapping[str, float], note: str = "") -> Figure:
    """Share of each vector in the frames of every layer, and in those of every etiology where there are several, as heatmaps.

    Args:
        measures: `steering/use/layer_<l>/expert_<e>` and `steering/use_by_etiology/layer_<l>/<etiology>/expert_<e>`.
    """
    use, by_etiology = _use(measures), _use_by_etiology(measures)
    shown = [use, by_etiology] if len(by_etiology) > len(use) else [use]
    height = 2.2 + 0.32 * sum(map(len, shown))
    figure, axes = new_figure("Use of the steering vectors on dev, kept model", min(height, 30.0), len(shown), 1, note)
    axes[0, 0].get_gridspec().set_height_ratios([len(table) + 1 for table in shown])
    for axis, table in zip(axes[:, 0], shown, strict=True):
        heatmap(axis, table, [[f"{100 * value:.0f}" for value in row] for row in table.to_numpy()], high=1.0)
    axes[-1, 0].set_xlabel("vector; in the cells its share of the frames, %")
    return figure


def _lines(axis: Axes, updates: pd.Series, values: pd.DataFrame, layers: Sequence[str]) -> None:
    for index, layer in enumerate(layers):
        line = values.iloc[:, index]
        axis.plot(updates, line, color=colour_of(index), marker=marker_of(index), markersize=4, label=layer)


def _rows(axis: Axes, updates: pd.Series, values: pd.DataFrame, layers: Sequence[str]) -> None:
    image = axis.pcolormesh(updates, [int(layer) for layer in layers], values.to_numpy().T, cmap="Blues", shading="nearest")
    axis.grid(False)
    axis.set_ylabel("layer")
    axis.figure.colorbar(image, ax=axis)


def _layers(analyses: pd.DataFrame, measure: str) -> dict[str, str]:
    """Column of a measure by layer."""
    prefix = f"steering/{measure}/layer_"
    return {name.removeprefix(prefix): name for name in analyses.columns if name.startswith(prefix)}


def _use(measures: Mapping[str, float]) -> pd.DataFrame:
    rows = [(name.split("/")[2:], value) for name, value in measures.items() if name.startswith("steering/use/")]
    return _table([(layer.replace("_", " "), expert, value) for (layer, expert), value in rows])


def _use_by_etiology(measures: Mapping[str, float]) -> pd.DataFrame:
    rows = [(name.split("/")[2:], value) for name, value in measures.items() if name.startswith("steering/use_by_etiology/")]
    return _table([(f"{layer.replace('_', ' ')} · {'/'.join(rest[:-1])}", rest[-1], value) for (layer, *rest), value in rows])


def _table(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Rows in the order in which they come, a column for each vector."""
    table: dict[str, dict[str, float]] = {}
    for row, expert, value in rows:
        table.setdefault(row, {})[expert.removeprefix("expert_")] = value
    return pd.DataFrame(table).T.fillna(0.0).astype(np.float64)


def _claimed(axis: Axes) -> None:
    for value in SCALES:
        axis.axhline(value, color="#777777", linestyle=":", linewidth=1)
