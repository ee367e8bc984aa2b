"""Decisions of a gate by group and by speaker, on a hand-worked table."""

import numpy as np
import pandas as pd
import pytest

from analysis.gate_choices import decisions_by, speaker_decisions

PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5], [0.0, 1.0]])
TABLE = pd.DataFrame(
    {"speaker": ["s2", "s2", "s2", "s1", "s3"], "etiology": ["als", "als", "als", "stroke", "als"], "cluster": [0, 0, 0, 0, 0]}
)


def test_groups_are_counted_by_hand() -> None:
    found = decisions_by(TABLE, PROBABILITIES).set_index("group")
    assert found["n_utterances"].to_dict() == {"als": 4, "stroke": 1} and found["n_speakers"].to_dict() == {"als": 2, "stroke": 1}
    assert found.loc["als", "accuracy"] == 0.5 and found.loc["als", ["expert_0", "expert_1"]].tolist() == [0.5, 0.5]
    assert found.loc["als", "confidence"] == pytest.approx((0.9 + 0.6 + 0.8 + 1.0) / 4)
    assert found.loc["stroke", "entropy"] == pytest.approx(1.0)
    assert found["expert"].to_dict() == {"als": 0, "stroke": 0}


def test_speakers_are_told_apart_with_how_decided_the_gate_is() -> None:
    found = speaker_decisions(TABLE, PROBABILITIES).set_index("speaker")
    assert found.index.tolist() == ["s2", "s3", "s1"] and found["etiology"].tolist() == ["als", "als", "stroke"]
    assert found["agreement"].to_dict() == {"s2": pytest.approx(2 / 3), "s3": 1.0, "s1": 1.0}
    assert found["expert"].to_dict() == {"s2": 0, "s3": 1, "s1": 0}
    assert found.loc["s2", ["expert_0", "expert_1"]].tolist() == pytest.approx(
        [1.7 / 3, 1.3 / 3]
    )  # mean probabilities, not counts
    assert found["accuracy"].to_dict() == {"s2": pytest.approx(2 / 3), "s3": 0.0, "s1": 1.0}


def test_the_order_of_rows_does_not_matter() -> None:
    order = [3, 1, 4, 0, 2]
    shuffled = speaker_decisions(TABLE.iloc[order], PROBABILITIES[order])
    pd.testing.assert_frame_equal(shuffled, speaker_decisions(TABLE, PROBABILITIES))


def test_without_clusters_nobody_is_right_or_wrong() -> None:
    assert decisions_by(TABLE.drop(columns="cluster"), PROBABILITIES)["accuracy"].isna().all()
