"""What `domain` says of the classifier behind `domain=auto`."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe.routing.gate_training import GateOptions, train_gate
from steps.reports.gate import log_classifier

NAMES = ("normal", "atypical")


@pytest.mark.parametrize("plots", [True, False])
def test_a_classifier_is_reported_with_what_it_confuses_and_how_sure_it_is(plots: bool) -> None:
    random, domains = np.random.default_rng(0), np.array([0, 1, 1, 0, 1, 1])
    vectors = random.normal(size=(6, 4)) + 4 * domains[:, None]
    labels = np.eye(2)[domains]
    result = train_gate(vectors, labels, vectors, labels, GateOptions(top_k=1), dev_speakers=list("abcabc"))
    logged: dict[str, Any] = {}
    step: Any = SimpleNamespace(
        plots=plots,
        log_metrics=logged.update,
        log_table=lambda table, name: logged.update({name: table}),
        log_figure=lambda figure, name: logged.update({name: figure}),
    )
    log_classifier(step, result, vectors, domains, NAMES, "")
    table = logged["tables/classifier.json"].set_index("domain")
    assert table.columns.tolist() == list(NAMES) and table.sum(axis=1).to_dict() == {"normal": 2, "atypical": 4}
    right = sum(table.loc[name, name] for name in NAMES) / 6
    assert right == pytest.approx(logged["dev/domain_accuracy"])
    assert {"temperature", "dev/ece_held_out"} <= set(logged["tables/classifier_metrics.json"]["metric"])
    assert {name for name in logged if name.startswith("plots/")} == (
        {"plots/classifier.png", "plots/classifier_reliability.png"} if plots else set()
    )
