"""What each expert is for, on a table where it is known."""

import numpy as np
import pandas as pd
import pytest

from analysis.error_rates import count_errors
from analysis.profiles import exemplars, expert_profiles, group_shares, standard_scores


@pytest.fixture
def counted():
    """Expert 0 has the slow ALS speakers, expert 1 the quick typical ones, expert 2 nobody."""
    rows = []
    for number in range(12):
        slow = number < 6
        weights = [0.9 - 0.01 * number, 0.1 + 0.01 * number, 0] if slow else [0.2, 0.8, 0]
        rows.append({"utterance_id": f"u{number:02d}", "speaker": f"s{number // 2}", "etiology": "ALS" if slow else "typical",
                     "reference": "a b c d", "hypothesis": "a b c x" if slow else "a b c d", "duration_s": 4.0 if slow else 2.0,
                     "loudness_db": -30.0 - number, **{f"weight_{i}": w for i, w in enumerate(weights)}})  # fmt: skip
    return count_errors(pd.DataFrame(rows))


def test_profiles_say_who_is_sent_where_and_how_it_goes(counted):
    found = expert_profiles(counted).set_index("expert")
    assert found["n_utterances"].tolist() == [6, 6, 0] and found["share"].sum() == 1
    assert found["main_group"].tolist() == ["ALS", "typical", "–"]
    assert found.loc[0, "top_speakers"] == "s0 (2), s1 (2), s2 (2)" and found.loc[0, "n_speakers"] == 3
    assert found.loc[[0, 1], "wer"].tolist() == [0.25, 0.0] and np.isnan(found.loc[2, "wer"])
    assert found.loc[[0, 1], "words_per_s"].tolist() == [1.0, 2.0]  # made from words and duration
    assert "severity" not in found


def test_shares_of_groups_sum_to_one_and_an_unused_expert_has_none(counted):
    found = group_shares(counted)
    assert found.to_numpy().tolist() == [[1, 0], [0, 1], [0, 0]] and found.columns.tolist() == ["ALS", "typical"]


def test_scores_point_the_right_way(counted):
    found = standard_scores(expert_profiles(counted), counted)
    assert found.loc[0, "duration_s"] > 0.9 and found.loc[1, "duration_s"] < -0.9
    assert found.loc[0, "duration_s"] == pytest.approx(1.0 / counted["duration_s"].std())


def test_exemplars_are_the_surest_of_different_speakers(counted):
    found = exemplars(counted, n_each=3)
    assert found.loc[found["expert"] == 0, "utterance_id"].tolist() == ["u00", "u02", "u04"]
    assert found.loc[found["expert"] == 1, "speaker"].nunique() == 3 and set(found["expert"]) == {0, 1}
    shuffled = exemplars(counted.sample(frac=1, random_state=2), n_each=3)
    assert shuffled["utterance_id"].tolist() == found["utterance_id"].tolist()


def test_at_top_1_exemplars_are_still_those_the_gate_is_surest_of(counted):
    """All weights are 1 then, and the first by name would be taken."""
    experts, sure = np.arange(12) // 6, np.linspace(0.6, 0.9, 12)
    gate = {f"probability_{e}": np.where(experts == e, sure, (1 - sure) / 2) for e in range(3)}
    found = exemplars(counted.assign(**gate, **{f"weight_{e}": (experts == e).astype(float) for e in range(3)}), 1)
    assert found["utterance_id"].tolist() == ["u05", "u11"] and found["weight"].tolist() == pytest.approx([sure[5], 0.9])


def test_what_is_not_recognised_yet_is_profiled_without_a_wer(counted):
    found = expert_profiles(counted.drop(columns=["word_errors"]))
    assert "wer" not in found and found["n_utterances"].sum() == len(counted)


def test_exemplars_repeat_a_speaker_only_when_no_other_is_left(counted):
    assert exemplars(counted, n_each=5).query("expert == 0")["utterance_id"].tolist() == ["u00", "u02", "u04", "u01", "u03"]
