"""What is said of experts that were tested and merged, and how labels follow them."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from moe.experts.alike import Merging
from moe.experts.pair_tests import PairTest
from steps.inputs import expert_clusters
from steps.inputs.corpus import soft_labels
from steps.inputs.expert_clusters import expert_of_cluster, joined_labels
from steps.reports.merging import is_kept, merging_line, pairs_table


def a_test(first: tuple, second: tuple, p_value: float, n_speakers: int = 6) -> PairTest:
    return PairTest(first, second, n_speakers, 60, 0.125, p_value, 0.05)


MERGED = Merging(
    ((0,), (1, 2)), (a_test((0,), (1,), 0.01), a_test((0,), (2,), 0.03), a_test((1,), (2,), 0.5), a_test((0,), (1, 2), 0.02))
)
UNSURE = Merging(((0,), (1,), (2,)), (a_test((0,), (1,), 0.01), *(a_test((n,), (2,), math.nan, 3) for n in (0, 1))))


def test_what_was_merged_is_said_with_what_it_did() -> None:
    assert merging_line(MERGED, 0.05, 0.2, 0.19) == (
        "3 experts, of which 2 differ on dev (p ≤ 0.05); merged 1+2: dev WER 19.0 %, 20.0 % before"
    )
    assert merging_line(MERGED, 0.05, 0.2, 0.21) == (
        "3 experts, of which 2 differ on dev (p ≤ 0.05); 1+2 merged would be worse: dev WER 21.0 %, 20.0 % before; all 3 stay"
    )


def test_a_test_that_cannot_tell_says_so() -> None:
    assert UNSURE.n_that_differ == 0
    assert merging_line(UNSURE, 0.05, 0.2, math.nan) == (
        "3 experts, of which 0 differ on dev (p ≤ 0.05); the test cannot tell 2 of 3 pairs apart or alike: they have 3 dev speakers, "
        "5 are needed; none is merged"
    )


def test_merged_experts_stay_where_dev_is_not_worse() -> None:
    assert is_kept(0.2, 0.2) and is_kept(0.2, 0.1) and not is_kept(0.2, 0.201) and not is_kept(0.2, math.nan)


def test_every_pair_that_was_tested_is_in_the_table() -> None:
    table = pairs_table(MERGED)
    assert table["first"].tolist() == ["0", "0", "1", "0"] and table["second"].tolist() == ["1", "2", "2", "1+2"]
    assert table["outcome"].tolist() == ["differ", "differ", "alike", "differ"]
    assert pairs_table(UNSURE)["outcome"].tolist()[1:] == ["too few speakers to tell"] * 2
    assert len(pairs_table(Merging(((0,),), ()))) == 0, "one expert has no pair"


def test_labels_follow_the_experts() -> None:
    soft = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.0, 1.0, 0.0]], np.float32)
    labels = pd.DataFrame({"utterance_id": list("abc"), "cluster": [0, 2, 1], **{f"soft_{n}": soft[:, n] for n in range(3)}})
    found = joined_labels(labels, np.array([0, 1, 0]))
    assert found["cluster"].tolist() == [0, 0, 1] and found["cluster"].dtype == labels["cluster"].dtype
    np.testing.assert_array_equal(soft_labels(found), [[0.75, 0.25], [0.875, 0.125], [0, 1]])
    assert list(found.columns) == ["utterance_id", "cluster", "soft_0", "soft_1"]


@pytest.mark.parametrize(("kept", "expected"), [([0, 1, 1], [0, 1, 1]), ([0, 1, 2], None), (None, None)])
def test_where_nothing_was_merged_every_cluster_has_its_own_expert(kept, expected, tmp_path, monkeypatch) -> None:
    (tmp_path / "experts.json").write_text(json.dumps({} if kept is None else {"expert_of_cluster": kept}))
    monkeypatch.setattr(expert_clusters.artifacts, "upstream", lambda run_id, name: tmp_path / "experts.json")
    assert expert_of_cluster("run") == expected and expert_of_cluster(None) is None
