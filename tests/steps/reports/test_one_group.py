"""A corpus without etiologies, or of one, gets no picture by etiology: one group alone is a number."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.error_rates import count_errors
from analysis.groups import several
from steps import prepare
from steps.reports import mixture
from steps.reports.routing import log_routing

BY_ETIOLOGY = {"amounts", "load_by_etiology", "expert_wer", "routing_over_epochs"}


@pytest.mark.parametrize(
    ("given", "expected"), [(["als", "als"], False), ([None, None], False), (["als", None], True), (["als", "stroke"], True)]
)
def test_what_nobody_named_is_a_group_too(given: list[str | None], expected: bool) -> None:
    assert several(pd.DataFrame({"etiology": given})) == expected


def drawn(etiologies: list[str]) -> set[str]:
    """The pictures of a corpus and of the routing of its utterances in training and on the test split."""
    found: set[str] = set()
    step: Any = SimpleNamespace(
        plots=True,
        log_table=lambda table, name: None,
        set_tags=lambda tags: None,
        log_figure=lambda figure, name: found.add(name.removeprefix("plots/").removesuffix(".png")),
    )
    table = count_errors(utterances(etiologies))
    ways = {name: table for name in ("learned", "expert_0", "expert_1")}
    log_routing(step, table, ways, 1, "")
    loads = {f"load/{etiology}/expert_{expert}": 0.5 for etiology in set(etiologies) for expert in range(2)}
    every = {"load/expert_0": 0.5, "load/expert_1": 0.5, "routing_entropy": 0.3}
    mixture.log_routing_by_epoch(step, pd.DataFrame([{"epoch": epoch, **every, **loads} for epoch in range(2)]), "")
    prepare._log_pictures(step, table, "")
    return found


def utterances(etiologies: list[str]) -> pd.DataFrame:
    n = len(etiologies)
    weights = np.tile([0.8, 0.2], (n, 1))
    return pd.DataFrame(
        {
            "utterance_id": [f"u{number}" for number in range(n)],
            "speaker": [f"s{number % 2}" for number in range(n)],
            "etiology": etiologies,
            "split": "test",
            "duration_s": np.linspace(1, 2, n),
            "reference": "oak ash",
            "hypothesis": "oak",
            "expert": 0,
            "n_words": 2,
            "loudness_db": -20.0,
        }
    ).join(pd.DataFrame(weights, columns=["weight_0", "weight_1"]))


def test_one_group_is_no_picture_and_all_others_are_drawn() -> None:
    several_groups, one = drawn(["als", "stroke"] * 4), drawn(["typical"] * 8)
    assert several_groups - one == BY_ETIOLOGY and one < several_groups
    assert {"durations", "words", "ablations", "load_by_epoch"} <= one
