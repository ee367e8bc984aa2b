"""MAPSSWE against published figures, Holm by hand, segments against the state machine they stand for."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.error_rates import count_errors
from analysis.significance import (
    WordErrors,
    group_differences,
    holm,
    mapsswe,
    matched_pairs,
    segment_errors,
    slots_of,
    speaker_difference,
    word_errors,
)

# NIST's description of the test and Jurafsky & Martin print this example with its four segments.
REFERENCE = "it was the best of times it was the worst of times it was"
SYSTEM_A = "its the best of times it is the worst of times or it was"
SYSTEM_B = "it was the best times it won the test of times it was"


def table(references, hypotheses, speakers=None):
    rows = {"reference": references, "hypothesis": hypotheses, "speaker": speakers or [f"s{i}" for i in range(len(references))]}
    return pd.DataFrame(rows).assign(utterance_id=[f"u{i:03d}" for i in range(len(references))])


def segments(reference, hypothesis_a, hypothesis_b, **options):
    found = [word_errors(table([reference], [hypothesis])) for hypothesis in (hypothesis_a, hypothesis_b)]
    return segment_errors(*found, **options).tolist()


def test_the_published_example_is_cut_into_its_four_segments():
    assert segments(REFERENCE, SYSTEM_A, SYSTEM_B) == [[2, 0], [0, 1], [1, 2], [1, 0]]


def test_z_of_the_published_example_by_hand():
    """Differences +2, −1, −1, +1: mean 1/4, variance 6.75/3 = 2.25, z = 0.25 / (1.5 / 2)."""
    found = mapsswe(np.array([[2, 0], [0, 1], [1, 2], [1, 0]]))
    assert (found.n_segments, found.mean) == (4, 0.25) and found.z == pytest.approx(1 / 3)
    assert found.p_value == pytest.approx(2 * (1 - stats.norm.cdf(1 / 3)))


def test_z_equals_the_figures_of_the_sc_stats_test_suite():
    """SCTK, src/sclite/testdata/base_sc_stats/test1a.stats.mapsswe and test1b: 2 sentences, 3 segments, 9 errors against 7, one segment
    with errors of the first system alone and two with errors of both; mean 0.667, std dev 0.577, Z 2.000; turned round −2.000.

    The report prints totals, not segments: those below have its totals and its table.
    """
    found, turned = mapsswe(np.array([[1, 0], [5, 4], [3, 3]])), mapsswe(np.array([[0, 1], [4, 5], [3, 3]]))
    assert found.n_segments == 3 and round(found.mean, 3) == 0.667 and round(found.z, 3) == 2.000
    assert round(turned.mean, 3) == -0.667 and round(turned.z, 3) == -2.000


@pytest.mark.parametrize(
    ("reference", "a", "b", "expected"),
    [
        ("a b c d", "a b c d", "a b c d", []),
        ("a b c d", "x b c d", "a b c y", [[1, 0], [0, 1]]),  # two good words between: two segments
        ("a b c", "x b c", "a b y", [[1, 1]]),  # one good word between: one segment
        ("a b c d", "x b c d", "a b z c y", [[1, 2]]),  # an insertion between the good words: they no longer bound
        ("a b", "a b c", "a b", [[1, 0]]),  # insertion behind the last word
        ("a b", "a b", "a b c", [[0, 1]]),  # the same for the second system, which sc_stats overlooks
        ("", "a b", "", [[2, 0]]),
    ],
)
def test_segments_by_hand(reference, a, b, expected):
    assert segments(reference, a, b) == expected


def test_segments_never_cross_utterances():
    a = word_errors(table(["a", "b"], ["x", "y"]))
    b = word_errors(table(["a", "b"], ["a", "b"]))
    assert segment_errors(a, b).tolist() == [[1, 0], [1, 0]]


def test_more_good_words_may_be_asked_for():
    assert segments("a b c d", "x b c d", "a b c y", min_good=3) == [[1, 1]]


def state_machine(a: WordErrors, b: WordErrors, n_words: int, min_good: int = 2):
    """The segmentation as the state machine describes it, word by word, for one utterance."""
    found, current, n_good = [], None, 0
    for word in range(n_words + 1):
        gap = (a.errors[2 * word], b.errors[2 * word])
        if any(gap):
            current, n_good = np.add(current if current is not None else (0, 0), gap), 0
        if word == n_words:
            break
        here = (a.errors[2 * word + 1], b.errors[2 * word + 1])
        if any(here):
            current, n_good = np.add(current if current is not None else (0, 0), here), 0
        elif current is not None:
            n_good += 1
            if n_good == min_good:
                found.append(list(current))
                current, n_good = None, 0
    return found + ([list(current)] if current is not None else [])


def slots_of_length(n_words):
    n_slots = 2 * n_words + 1
    return st.tuples(*[st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=n_slots, max_size=n_slots)] * 2)


@settings(max_examples=150)
@given(st.integers(0, 12).flatmap(slots_of_length))
def test_segments_equal_those_of_the_state_machine(pair):
    sides = []
    for errors in pair:
        is_word = np.arange(len(errors)) % 2 == 1
        sides.append(WordErrors(np.where(is_word, np.minimum(errors, 1), errors), np.zeros(len(errors), int), is_word))
    assert segment_errors(*sides).tolist() == state_machine(*sides, len(pair[0]) // 2)


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.text("ab ", max_size=14)] * 3), min_size=1, max_size=5))
def test_segments_hold_all_errors_of_both_systems(rows):
    references, first, second = zip(*rows, strict=True)
    a, b = table(list(references), list(first)), table(list(references), list(second))
    totals = [count_errors(side)["word_errors"].sum() for side in (a, b)]
    assert segment_errors(word_errors(a), word_errors(b)).sum(axis=0).tolist() == totals


def test_systems_aligned_with_different_references_are_refused():
    with pytest.raises(ValueError, match="same references"):
        segment_errors(word_errors(table(["a b"], ["a"])), word_errors(table(["a b c"], ["a"])))
    assert len(slots_of([[]], [0]).errors) == 1


def test_no_p_value_is_made_up_where_segments_do_not_vary():
    assert np.isnan(mapsswe(np.array([[1, 0], [1, 0], [2, 1]])).p_value)
    assert np.isnan(mapsswe(np.array([[1, 0]])).p_value)
    assert mapsswe(np.array([[1, 1], [2, 2]])).p_value == 1.0 and mapsswe(np.zeros((0, 2), int)).p_value == 1.0


def test_more_seeds_do_not_make_a_difference_more_significant():
    a, b = word_errors(table([REFERENCE] * 9, [SYSTEM_A] * 9)), word_errors(table([REFERENCE] * 9, [SYSTEM_B] * 9))
    once, thrice = matched_pairs([a], [b]), matched_pairs([a] * 3, [b])
    assert (thrice.z, thrice.n_segments) == (pytest.approx(once.z), once.n_segments)
    assert np.isnan(matched_pairs([a] * 3, [b] * 2).p_value)


def test_holm_by_hand():
    """0.01·4, 0.02·3, then 0.03·2 = 0.06 no smaller than the one before, 0.04·1 lifted to 0.06."""
    assert holm([0.03, 0.01, 0.04, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    corrected = holm([0.02, np.nan, 0.04])
    assert np.isnan(corrected[1]) and corrected[[0, 2]].tolist() == [0.04, 0.04]
    assert holm([]).tolist() == []


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert (corrected >= np.array(p_values) - 1e-12).all()
    assert (corrected <= np.minimum(1, np.array(p_values) * len(p_values)) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p_values, kind="stable")]) >= 0).all()


def ten_speakers(extra):
    references = ["a b c d e"] * 40
    hypotheses = ["a b c d e" if i % 10 >= extra else "a b c d x" for i in range(40)]
    return count_errors(table(references, hypotheses, [f"s{i % 10}" for i in range(40)]))


def test_the_difference_is_that_of_the_rates_and_ignores_row_order():
    worse, better = ten_speakers(8), ten_speakers(0)
    found = speaker_difference(worse, better)
    assert found.value == pytest.approx(0.16) and found.low > 0 and found.p_value < 0.01
    assert found == speaker_difference(worse.sample(frac=1, random_state=1), better.iloc[::-1])


def test_other_utterances_are_refused_by_name():
    with pytest.raises(ValueError, match="u039"):
        speaker_difference(ten_speakers(1), ten_speakers(1).iloc[:-1])


def test_group_differences_tell_where_a_system_is_worse():
    first = ten_speakers(0).assign(etiology=["stroke" if i % 10 < 5 else "ALS" for i in range(40)])
    found = group_differences(ten_speakers(5).assign(etiology=first["etiology"]), first, "etiology").set_index("group")
    assert found["difference"].to_dict() == pytest.approx({"ALS": 0.0, "stroke": 0.2})
    assert found.loc["ALS", "p_holm"] == 1.0 and found["n_speakers"].tolist() == [5, 5]
