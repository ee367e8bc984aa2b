"""Flags of hypotheses that are no transcripts, and repetitions that were smoothed away."""

import numpy as np
import pandas as pd
import pytest

from analysis.error_rates import count_errors
from analysis.flags import compression_ratio, deleted_repeats, flag_counts, flag_hypotheses, longest_repeat


def flagged(reference, hypothesis, **columns):
    table = pd.DataFrame({"utterance_id": ["u"], "speaker": ["s"], "reference": [reference], "hypothesis": [hypothesis]})
    return flag_hypotheses(count_errors(table.assign(**columns))).iloc[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("one", 1), ("a b c", 1), ("no no no", 3), ("go home go home go home", 3), ("a b a b c", 2), ("a a b b b", 3)],
)
def test_repeats_by_hand(text, expected):
    assert longest_repeat(text) == expected


def test_a_loop_compresses_and_a_sentence_does_not():
    assert compression_ratio("the train to the coast leaves at seven in the morning") < 1.3
    assert compression_ratio("thank you " * 40) > 2.4 and compression_ratio("") == 0


def test_a_loop_is_flagged_but_not_where_the_speaker_really_repeated():
    assert flagged("go home", "go home go home go home go home")["is_loop"]
    assert not flagged("no no no no no", "no no no no no")["is_loop"]


def test_text_from_nowhere_is_flagged_and_a_bad_but_related_one_is_not():
    assert flagged("please open the door", "thanks for watching")["is_hallucination"]
    assert flagged("", "thanks for watching")["is_hallucination"]
    assert not flagged("please open the door", "peas open a dot")["is_hallucination"]


def test_nothing_recognised_is_empty_only_where_something_was_said():
    assert flagged("hello", "")["is_empty"] and not flagged("", "")["is_empty"]


def test_impossible_speed_and_low_probability_are_flagged_only_where_measured():
    assert flagged("a b", " ".join("abcdefghij"), duration_s=1.0)["is_too_fast"]
    assert not flagged("a b", "a b", duration_s=1.0)["is_too_fast"]
    assert flagged("a", "a", mean_logprob=-1.5)["is_unsure"] and not flagged("a", "a")["is_unsure"]
    assert np.isnan(flagged("a", "a")["words_per_s"])


def test_deleted_repetitions_are_counted_and_other_deletions_are_not():
    found = deleted_repeats(["i i want tea", "i want hot tea", "the the the cat"], ["i want tea", "i want tea", "the cat"])
    assert found.tolist() == [1, 0, 2]


def test_counts_add_up_and_nothing_is_left_out():
    table = pd.DataFrame({"reference": ["a b c", "a", "a"], "hypothesis": ["", "a", "x y z"], "speaker": "s"})
    counts = flag_counts(flag_hypotheses(count_errors(table.assign(utterance_id=list("abc"))))).set_index("flag")
    assert counts.loc["empty", ["n_utterances", "word_errors"]].tolist() == [1, 3]
    assert counts.loc["hallucination", ["n_utterances", "word_errors"]].tolist() == [1, 3]
    assert counts.loc["loop", "n_utterances"] == 0


def test_tokens_by_second_and_lost_repetitions_are_flagged():
    assert (
        flagged("a", "a", duration_s=1.0, n_tokens=40)["is_too_fast"]
        and flagged("a", "a", duration_s=1.0, n_tokens=40)["tokens_per_s"] == 40
    )
    assert not flagged("a", "a", duration_s=2.0, n_tokens=40)["is_too_fast"] and np.isnan(flagged("a", "a")["tokens_per_s"])
    assert flagged("i i want tea", "i want tea")["is_smoothed"] and not flagged("i want tea", "want tea")["is_smoothed"]
