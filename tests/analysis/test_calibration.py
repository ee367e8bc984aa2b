"""Accuracy, calibration and confusion of a gate on hand-worked tables."""

import numpy as np
import pytest

from analysis.calibration import confusion_table, expected_calibration_error, reliability, top_k_accuracy

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4]])
LABELS = np.array([0, 1, 1, 0])


def test_top_k_accuracy_by_hand():
    assert [top_k_accuracy(PROBABILITIES, LABELS, k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]


def test_a_tie_goes_to_the_lower_expert():
    assert top_k_accuracy(np.array([[0.5, 0.5]]), np.array([1]), 1) == 0.0


def test_calibration_error_by_hand():
    """Bins of 0.1: confidences 0.7 right, 0.6 wrong, 0.5 right, 0.4 wrong, one each: mean of 0.3, 0.6, 0.5, 0.4."""
    assert expected_calibration_error(PROBABILITIES, LABELS) == pytest.approx((0.3 + 0.6 + 0.5 + 0.4) / 4)


def test_a_calibrated_gate_has_almost_no_error_and_a_boastful_one_much():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 20_000)
    labels = (probabilities.cumsum(axis=1) > generator.random((20_000, 1))).argmax(axis=1)
    assert expected_calibration_error(probabilities, labels) < 0.02
    sharp = probabilities**6 / (probabilities**6).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharp, labels) > 0.2


def test_every_utterance_is_in_one_bin_of_the_reliability_table():
    table = reliability(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), np.array([0, 0, 0]))
    assert table["n_utterances"].sum() == 3 and table["n_utterances"].iloc[-1] == 2 and table["n_utterances"].iloc[4] == 1
    assert table["accuracy"].iloc[-1] == 0.5 and np.isnan(table["accuracy"].iloc[0])


def test_confusion_has_every_expert_and_keeps_noise():
    table = confusion_table(np.array([0, 0, 1, -1]), np.array([0, 2, 1, 1]), n_experts=4)
    assert table.index.tolist() == [-1, 0, 1, 2, 3] and table.to_numpy().sum() == 4
    assert table.loc[0, 2] == 1 and table.loc[-1, 1] == 1 and table.loc[3].sum() == 0


def test_arrays_that_do_not_fit_and_k_out_of_range_are_refused():
    with pytest.raises(ValueError, match="n_utterances, n_experts"):
        reliability(PROBABILITIES, LABELS[:2])
    with pytest.raises(ValueError, match="k=4"):
        top_k_accuracy(PROBABILITIES, LABELS, 4)
