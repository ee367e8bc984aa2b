"""Pictures of steering: of several etiologies also by etiology, each vector in the order of its number; of many layers still readable."""

import pandas as pd
import pytest

from analysis.plots.steering import PANELS, dev_figure, history_figure


def measures(*etiologies: str) -> dict[str, float]:
    use = {f"steering/use/layer_{layer}/expert_{expert}": 0.5 for layer in (1, 2) for expert in (0, 1)}
    by_etiology = {
        f"steering/use_by_etiology/layer_{layer}/{etiology}/expert_{expert}": 0.5
        for layer in (1, 2)
        for etiology in etiologies
        for expert in (0, 1)
    }
    return use | by_etiology


@pytest.mark.parametrize(("etiologies", "rows"), [((), [2]), (("als",), [2]), (("als", "a/b"), [2, 4])])
def test_one_etiology_is_the_whole_and_is_not_drawn_again(etiologies: tuple[str, ...], rows: list[int]) -> None:
    figure = dev_figure(measures(*etiologies))
    assert [len(axis.get_yticks()) for axis in figure.axes] == rows
    assert figure.axes[-1].get_xlabel().startswith("vector")
    assert [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes] == [["0", "1"]] * len(rows)


def analyses(n_layers: int, n_vectors: int) -> pd.DataFrame:
    layers = range(1, n_layers + 1)
    found = {f"steering/{measure}/layer_{layer}": 0.1 * layer for measure in PANELS for layer in layers}
    found |= {f"steering/use/layer_{layer}/expert_{expert}": 1 / n_vectors for layer in layers for expert in range(n_vectors)}
    return pd.DataFrame([{"update": update, **found} for update in (1, 2, 3)])


@pytest.mark.parametrize("n_layers", [1, 4, 32])
def test_every_panel_keeps_its_height_whatever_the_layers(n_layers: int) -> None:
    figure = history_figure(analyses(n_layers, 8))
    figure.canvas.draw()
    panels = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert [axis.get_title(loc="left") for axis in panels] == list(PANELS.values())
    assert all(axis.get_position().height > 0.2 for axis in panels)
    assert all(axis.get_lines() or axis.collections for axis in panels)
    assert all(float(tick).is_integer() for axis in panels for tick in axis.get_xticks())


def test_one_vector_has_no_choices_to_draw() -> None:
    shown = [axis.get_title(loc="left") for axis in history_figure(analyses(4, 1)).axes]
    assert len(shown) == 3 and not any("entropy" in title or "information" in title for title in shown)
