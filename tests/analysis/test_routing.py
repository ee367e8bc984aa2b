"""Load, entropy, collapse and regret on tables small enough to work by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import routing
from analysis.error_rates import count_errors


def routed(weights, **columns):
    table = pd.DataFrame(np.asarray(weights, float), columns=[f"weight_{i}" for i in range(np.shape(weights)[1])])
    return table.assign(utterance_id=[f"u{i}" for i in range(len(table))], **columns)


HALVES = [[1, 0], [1, 0], [0.5, 0.5], [0, 1]]


def test_load_counts_wins_and_averages_weights():
    load = routing.expert_load(routed(HALVES))
    assert load["n_utterances"].tolist() == [3, 1] and load["share"].tolist() == [0.75, 0.25]
    assert load["load"].tolist() == [0.625, 0.375]


def test_an_expert_nobody_uses_keeps_its_row():
    assert routing.expert_load(routed([[1, 0, 0], [1, 0, 0]]))["n_utterances"].tolist() == [2, 0, 0]


def test_entropy_is_0_for_one_expert_and_1_for_all_alike():
    assert routing.entropy(np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])) == pytest.approx([0, 1])
    assert routing.entropy(np.array([[0.5, 0.5, 0, 0]]))[0] == pytest.approx(0.5)
    assert routing.entropy(np.array([[1.0]])).tolist() == [0.0]


def test_at_top_1_the_entropy_is_still_the_gates_own():
    """Weights of one expert alone are certain, whatever the gate thinks."""
    table = pd.DataFrame(
        {"utterance_id": ["a"], "weight_0": [1.0], "weight_1": [0.0], "probability_0": [0.5], "probability_1": [0.5]}
    )
    assert routing.routing_entropy(table) == pytest.approx(1.0)
    assert routing.routing_entropy(table.drop(columns="probability_1")) == 0.0


def test_a_sure_gate_with_even_load_is_told_from_an_unsure_one():
    sure, unsure = routed([[1, 0], [0, 1]]), routed([[0.5, 0.5], [0.5, 0.5]])
    assert (routing.routing_entropy(sure), routing.load_entropy(sure)) == pytest.approx((0, 1))
    assert (routing.routing_entropy(unsure), routing.load_entropy(unsure)) == pytest.approx((1, 1))


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=8))
def test_loads_sum_to_one_and_entropies_stay_between_0_and_1(rows):
    etiology = [["ALS", "stroke"][i % 2] for i in range(len(rows))]
    table = routed(np.array(rows) / np.sum(rows, axis=1, keepdims=True), etiology=etiology)
    load = routing.expert_load(table)
    assert load["load"].sum() == pytest.approx(1) and load["share"].sum() == pytest.approx(1)
    assert 0 <= routing.routing_entropy(table) <= routing.load_entropy(table) + 1e-9 <= 1 + 1e-8  # entropy is concave
    assert routing.load_by(table).sum(axis=1).to_numpy() == pytest.approx(1)


def test_load_by_etiology_averages_within_the_group():
    table = routing.load_by(routed(HALVES, etiology=["b", "a", "a", None]))
    assert table.index.tolist() == ["a", "b", "unknown"]
    assert table.to_numpy().tolist() == [[0.75, 0.25], [1, 0], [0, 1]]


def test_collapse_is_seen():
    """Pitfall 2: one expert took all fifty evaluation utterances and nothing said so."""
    found = routing.collapse(routed([[1, 0]] * 50, cluster=[0] * 25 + [1] * 25))
    assert found.collapsed and "expert 0 takes 100%" in found.reason


def test_a_large_cluster_excuses_a_large_load_and_an_even_load_needs_no_excuse():
    assert not routing.collapse(routed([[1, 0]] * 8 + [[0, 1]] * 2, cluster=[0] * 8 + [1] * 2)).collapsed
    assert not routing.collapse(routed([[1, 0], [0, 1]], cluster=[0, 1])).collapsed
    assert not routing.collapse(routed([[1.0], [1.0]], cluster=[0, 0])).collapsed


def test_collapse_is_seen_in_wins_even_where_weights_look_even():
    assert routing.collapse(routed([[0.52, 0.48]] * 10, cluster=[0, 1] * 5)).collapsed


def scored(hypotheses):
    table = pd.DataFrame({"reference": ["a b", "c d", "e f"], "hypothesis": hypotheses, "speaker": "s"})
    return count_errors(table.assign(utterance_id=["u0", "u1", "u2"]))


def test_regret_is_gate_minus_the_best_expert_of_each_utterance():
    gate = scored(["a b", "x x", "e x"])  # 0, 2, 1 errors of 6 words
    experts = {0: scored(["a x", "c d", "x x"]), 1: scored(["x x", "c x", "e f"])}  # best: 1, 0, 0
    found = routing.regret(gate, experts)
    assert (found.gate_wer, found.best_wer, found.regret) == pytest.approx((3 / 6, 1 / 6, 2 / 6))
    assert found.n_best_chosen == 1 and found.per_utterance["best_expert"].tolist() == [0, 0, 1]


def test_regret_does_not_depend_on_the_order_of_rows():
    gate, experts = scored(["a b", "x x", "e x"]), {0: scored(["a x", "c d", "x x"]), 1: scored(["x x", "c x", "e f"])}
    shuffled = routing.regret(gate.iloc[::-1], {0: experts[0].iloc[[1, 2, 0]], 1: experts[1].iloc[[2, 0, 1]]})
    pd.testing.assert_frame_equal(shuffled.per_utterance, routing.regret(gate, experts).per_utterance)


def test_regret_refuses_experts_scored_on_other_utterances():
    with pytest.raises(ValueError, match="expert 1 .* u2"):
        routing.regret(scored(["a", "b", "c"]), {1: scored(["a", "b", "c"]).iloc[:2]})
    with pytest.raises(ValueError, match="at least one expert"):
        routing.regret(scored(["a", "b", "c"]), {})


@pytest.mark.parametrize("weights", [[[0.5, 0.4]], [[np.nan, 1]], [[1.5, -0.5]]])
def test_weights_that_are_no_distribution_are_refused_by_utterance(weights):
    with pytest.raises(ValueError, match="u0"):
        routing.routing_weights(routed(weights))


def test_a_table_without_weights_is_refused():
    with pytest.raises(ValueError, match="weight_0"):
        routing.expert_load(pd.DataFrame({"utterance_id": ["u0"]}))
