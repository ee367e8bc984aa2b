"""Pictures of steering: of several etiologies also by etiology, each vector in the order of its number."""

import pytest

from analysis.plots.steering import dev_figure


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
