"""Who may become champion: better, surely, on the same test set, and at no group's cost."""

import dataclasses

import numpy as np
import pytest

from analysis.promotion import decide, regressions
from analysis.systems import SystemScores, counted
from tests.toys.registry import BETTER, WORSE, WRONG, toy_hypotheses

UNFAIR = {"als": 0.1, "stroke": 0.1, "typical": 0.3}


def scores(wrong: dict[str, float], seed: int = 1, **metadata: str) -> SystemScores:
    found = {"normaliser": "basic-1", "test_set_digest": "d"} | metadata
    return SystemScores("Whisper-MoE", f"run{seed}", "whisper_moe", "mixture", toy_hypotheses(wrong, seed), metadata=found)


CHAMPION = scores(WRONG, 0)


def decision(wrong: dict[str, float], allowed: float = 0.02, **metadata: str):
    return decide(scores(wrong, **metadata), CHAMPION, "version 1", allowed, 500)


def test_better_is_promoted_and_says_by_how_much() -> None:
    found = decision(BETTER)
    assert found.promoted and found.difference.value < -0.1
    assert "points WER better than version 1" in found.reason and "no group worse by more than 2 points" in found.reason


def test_worse_is_not() -> None:
    found = decision(WORSE)
    assert not found.promoted and "points WER worse than version 1" in found.reason


def test_as_good_is_not() -> None:
    found = decide(CHAMPION, CHAMPION, "version 1", 0.02, 500)
    assert not found.promoted and found.reason.startswith("not significantly better: no different from version 1")


def test_better_overall_but_worse_for_one_group_is_not_and_the_group_is_named() -> None:
    found = decision(UNFAIR)
    assert not found.promoted and found.difference.value < 0 and found.difference.p_value < 0.05
    assert (
        "points WER better than version 1" in found.reason
        and "worse by more than 2 points for etiology typical by" in found.reason
    )
    assert found.groups.iloc[0]["group"] == "typical"


def test_the_margin_is_the_users() -> None:
    lost = decision(UNFAIR).groups.iloc[0]["difference"]
    assert decision(UNFAIR, lost).promoted and not decision(UNFAIR, lost - 1e-6).promoted


@pytest.mark.parametrize("metadata", [{"normaliser": "whisper-2"}, {"test_set_digest": "e"}])
def test_other_test_sets_and_normalisers_are_not_compared(metadata: dict[str, str]) -> None:
    found = decision(BETTER, **metadata)
    assert not found.promoted and found.difference is None and found.groups.empty
    assert found.reason.startswith("cannot be compared with version 1") and next(iter(metadata)) in found.reason


def test_a_missing_utterance_is_another_test_set() -> None:
    short = dataclasses.replace(scores(BETTER), hypotheses=toy_hypotheses(BETTER, 1).iloc[1:])
    assert "1 utterance(s) only in" in decide(short, CHAMPION, "version 1", 0.02, 500).reason


def test_one_speaker_proves_nothing() -> None:
    one, other = (
        dataclasses.replace(scores(wrong), hypotheses=toy_hypotheses(wrong, 1).query("speaker == 's00'"))
        for wrong in (BETTER, WRONG)
    )
    found = decide(one, other, "version 1", 0.02, 500)
    assert not found.promoted and "p not defined" in found.reason


def test_regressions_are_differences_of_ratios_of_sums() -> None:
    ours, theirs = counted(scores(BETTER)), counted(CHAMPION)
    found = regressions(ours, theirs).set_index(["column", "group"])["difference"]
    for group in ("als", "stroke", "typical"):
        a, b = (table[table["etiology"] == group] for table in (ours, theirs))
        assert found["etiology", group] == pytest.approx(
            a["word_errors"].sum() / a["n_words"].sum() - b["word_errors"].sum() / b["n_words"].sum()
        )
    assert (np.diff(found.to_numpy()) <= 0).all()
