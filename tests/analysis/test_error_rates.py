"""Counts by hand, ratios of sums, what clipping does, and that no utterance drops out."""

import jiwer
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.error_rates import EDITS, cer_without_spaces, clipped_errors, count_errors, rates_by, total_errors
from analysis.hypotheses import check_hypotheses, weight_columns

# reference, hypothesis, word hits, substitutions, deletions, insertions
BY_HAND = [
    ("the cat sat", "the cat sat", 3, 0, 0, 0),
    ("the cat sat", "the dog sat", 2, 1, 0, 0),
    ("the cat sat", "the sat", 2, 0, 1, 0),
    ("the cat sat", "the cat sat down", 3, 0, 0, 1),
    ("the cat sat", "", 0, 0, 3, 0),
    ("", "hello there", 0, 0, 0, 2),
    ("", "", 0, 0, 0, 0),
    ("one", "two three four five", 0, 1, 0, 3),
]


def hypotheses(pairs, **columns):
    table = pd.DataFrame({"reference": [p[0] for p in pairs], "hypothesis": [p[1] for p in pairs]})
    ids = [f"u{i}" for i in range(len(pairs))]
    return table.assign(utterance_id=ids, **{"speaker": [f"s{i % 2}" for i in range(len(pairs))], **columns})


def test_words_are_counted_as_by_hand():
    counted = count_errors(hypotheses(BY_HAND))
    columns = ["word_hits", "word_substitutions", "word_deletions", "word_insertions"]
    assert counted[columns].to_numpy().tolist() == [list(row[2:]) for row in BY_HAND]
    assert counted["n_words"].tolist() == [3, 3, 3, 3, 3, 0, 0, 1]
    assert counted["word_errors"].tolist() == [sum(row[3:]) for row in BY_HAND]


def test_characters_are_counted_as_by_hand_and_spaces_are_characters():
    counted = count_errors(hypotheses([("ab c", "ab"), ("ab", "axb"), ("नेपाली", "नेपाल")]))
    columns = ["char_hits", "char_substitutions", "char_deletions", "char_insertions"]
    assert counted[columns].to_numpy().tolist() == [[2, 0, 2, 0], [2, 0, 0, 1], [5, 0, 1, 0]]


def test_insertions_count_where_the_reference_is_empty():
    """Pitfalls, stack: jiwer ≥ 4 counts insertions for empty references; the sums here rely on it."""
    total = total_errors(count_errors(hypotheses([("", "hello there"), ("a b", "a b")])))
    assert total.words.insertions == 2 and total.words.length == 2 and total.wer == 1.0
    assert jiwer.process_words([""], ["hello there"]).insertions == 2


def test_wer_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    total = total_errors(count_errors(hypotheses([("a", "b"), ("a b c d e f g h i", "a b c d e f g h i")])))
    assert total.wer == pytest.approx(0.1)  # the mean of the two rates would be 0.5


def test_rate_of_nothing_is_not_a_number():
    assert np.isnan(total_errors(count_errors(hypotheses([("", "")]))).wer)


def test_a_failed_utterance_scores_as_empty_and_stays_in_the_sum():
    counted = count_errors(hypotheses([("a b", "a b"), ("c d", "")], error=[None, "unreadable"]))
    assert rates_by(counted)["wer"].tolist() == [0.5] and rates_by(counted)["n_utterances"].tolist() == [2]


def test_clipping_bounds_each_utterance_at_its_reference_length():
    counted = count_errors(hypotheses([("one", "two three four five"), ("a b c d", "a b c x"), ("", "hello")]))
    assert clipped_errors(counted).tolist() == [1, 1, 0]
    row = rates_by(counted).iloc[0]
    assert row["wer"] == pytest.approx(6 / 5) and row["wer_clipped"] == pytest.approx(2 / 5)


def test_groups_are_sorted_counted_and_none_is_dropped():
    table = hypotheses([("a b", "a b"), ("a b", "a"), ("a b", "x y")], etiology=["stroke", None, "ALS"])
    rates = rates_by(count_errors(table), "etiology")
    assert rates["group"].tolist() == ["ALS", "stroke", "unknown"]
    assert rates["wer"].tolist() == [1.0, 0.0, 0.5] and rates["n_utterances"].sum() == 3


def test_a_group_of_one_speaker_has_no_interval_and_is_flagged_small():
    table = hypotheses([("a b", "a")] * 4, speaker=["s"] * 4)
    row = rates_by(count_errors(table)).iloc[0]
    assert np.isnan(row["low"]) and np.isnan(row["high"]) and row["small"]


def test_a_large_group_is_not_flagged():
    table = hypotheses([("a b c d e", "a b c d x")] * 60, speaker=[f"s{i % 6}" for i in range(60)])
    assert not rates_by(count_errors(table)).iloc[0]["small"]


def test_rates_do_not_depend_on_the_order_of_rows():
    table = count_errors(hypotheses(BY_HAND * 3).assign(utterance_id=[f"u{i}" for i in range(24)]))
    pd.testing.assert_frame_equal(rates_by(table, "speaker"), rates_by(table.sample(frac=1, random_state=3), "speaker"))


def test_boolean_and_numeric_groups_have_readable_names():
    counted = count_errors(hypotheses([("a", "a")] * 3, sentence_seen=[True, False, True], severity=[1.0, 2.5, np.nan]))
    assert rates_by(counted, "sentence_seen")["group"].tolist() == ["no", "yes"]
    assert rates_by(counted, "severity")["group"].tolist() == ["1", "2.5", "unknown"]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text("ab ", max_size=12), st.text("ab ", max_size=12)), min_size=1, max_size=6))
def test_counts_agree_with_the_lengths_of_both_sides(pairs):
    counted = count_errors(hypotheses(pairs))
    words = [(len(reference.split()), len(hypothesis.split())) for reference, hypothesis in pairs]
    assert (counted["word_hits"] + counted["word_substitutions"] + counted["word_deletions"]).tolist() == [n for n, _ in words]
    assert (counted["word_hits"] + counted["word_substitutions"] + counted["word_insertions"]).tolist() == [n for _, n in words]
    assert total_errors(counted).words.errors == jiwer_errors(pairs)


def jiwer_errors(pairs):
    output = jiwer.process_words([p[0] for p in pairs], [p[1] for p in pairs])
    return output.substitutions + output.deletions + output.insertions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="speaker"), "lacks the column"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(utterance_id="same"), "more than once: same"),
        (lambda t: t.assign(hypothesis=[None, "a"]), "hypothesis must be text.*u0"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_hypotheses(change(hypotheses([("a", "a"), ("b", "b")])))


def test_weight_columns_come_in_the_order_of_experts_and_may_not_skip():
    assert weight_columns(pd.DataFrame(columns=[f"weight_{i}" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)]))[-1] == "weight_10"
    with pytest.raises(ValueError, match="weight_0"):
        weight_columns(pd.DataFrame(columns=["weight_0", "weight_2"]))


def test_clipped_rates_have_intervals_of_their_own_from_the_same_resamples():
    """One speaker loops: 9 errors on 3 words, clipped 3; the other three make 1 error on 3 words. Clipped 6/12, unclipped 12/12."""
    table = pd.DataFrame({"utterance_id": list("abcd"), "speaker": list("wxyz"), "reference": "a b c",
                          "hypothesis": ["a b x", "a b x", "a b x", " ".join("xyzuvwrst")]})  # fmt: skip
    row = rates_by(count_errors(table)).iloc[0]
    assert (row["wer"], row["wer_clipped"]) == (1.0, 0.5)
    assert row["wer_clipped_low"] >= 0.3 and row["wer_clipped_high"] <= 1.0 < row["high"]
    calm = rates_by(count_errors(table.iloc[:3])).iloc[0]
    assert (calm["low"], calm["high"]) == (calm["wer_clipped_low"], calm["wer_clipped_high"])


def test_a_letter_and_its_marks_are_one_grapheme():
    counted = count_errors(hypotheses([("किताब र", "कीताब र"), ("हिँड्छ", "हिड्छ")]))
    assert counted["n_chars"].tolist() == [7, 6] and counted["n_graphemes"].tolist() == [5, 2]
    assert counted["char_errors"].tolist() == [1, 1] and counted["grapheme_errors"].tolist() == [1, 1]
    rates = rates_by(counted).iloc[0]
    assert rates["cer"] == 2 / 13 and rates["grapheme_cer"] == 2 / 7


@given(st.lists(st.tuples(st.text("ab ", max_size=12), st.text("ab ", max_size=12)), min_size=1, max_size=4))
def test_without_combining_marks_graphemes_are_characters(pairs):
    counted = count_errors(hypotheses(pairs))
    for edit in EDITS:
        assert counted[f"char_{edit}"].tolist() == counted[f"grapheme_{edit}"].tolist()


def test_without_spaces_only_characters_count():
    table = hypotheses([("가방을 봤어요", "가방 을봤어요"), ("책", "책상"), ("", "")], etiology=["als", "typical", "typical"])
    counted = count_errors(table)
    assert cer_without_spaces(counted) == {"all": pytest.approx(1 / 7)}
    assert cer_without_spaces(counted, "etiology") == {"als": 0.0, "typical": 1.0}
    assert np.isnan(cer_without_spaces(count_errors(hypotheses([("", "")])))["all"])
