"""The challenge rules on hand-worked utterances: better reference, clipping, ties, unknown words."""

import pandas as pd
import pytest

from analysis.challenge import challenge_score


def table(rows):
    frame = pd.DataFrame(rows, columns=["reference", "reference_fluent", "hypothesis"])
    return frame.assign(utterance_id=[f"u{i}" for i in range(len(rows))], speaker="s")


def test_the_better_reference_of_each_utterance_counts_with_its_own_length():
    """Said "i i want tea", meant "i want tea": the fluent hypothesis is right by the second reference, 0 errors of 3 words."""
    found = challenge_score(table([("i i want tea", "i want tea", "i want tea"), ("a b c d", "a b c d", "a b c x")]), "sapc1")
    assert found.wer == pytest.approx(1 / 7) and found.primary == found.wer and found.two_references


def test_equally_good_references_count_half_each():
    """Against four words 2 errors, against two words 1 error: 50 % both, so 1.5 errors of 3 words, with 0 of 3 beside it."""
    found = challenge_score(table([("a b c d", "a x", "a b"), ("e f g", "e f g", "e f g")]), "sapc1")
    assert found.wer == pytest.approx(1.5 / 6)


def test_an_utterance_is_never_worse_than_100_percent():
    found = challenge_score(table([("a", "a", "x y z w v"), ("b c d", "b c d", "b c d")]), "sapc1")
    assert found.wer == pytest.approx(1 / 4)


def test_an_empty_reference_gives_way_to_the_other():
    found = challenge_score(table([("um", "", "x")]), "sapc1")
    assert found.wer == 1.0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "wer"),
    [
        ("a unk c", "a b c", 0),  # another word recognised: unk becomes that word
        ("a unk c", "a c", 0),  # nothing recognised: dropped
        ("a c", "a unk c", 0),  # made up by the recogniser: dropped
        ("a b", "a unk", 1 / 2),  # a real word missed stays an error
        ("a b unk", "x b", 1 / 2),  # dropped, it no longer counts among the words
    ],
)
def test_unknown_words_are_forgiven(reference, hypothesis, wer):
    assert challenge_score(table([(reference, reference, hypothesis)]), "sapc2").wer == pytest.approx(wer)


def test_only_the_second_edition_forgives_and_it_ranks_by_characters():
    rows = table([("a unk c", "a unk c", "a b c")])
    assert challenge_score(rows, "sapc1").wer == pytest.approx(1 / 3)
    found = challenge_score(rows, "sapc2")
    assert found.wer == 0 and found.cer == 0 and found.primary == found.cer


def test_endless_hypotheses_are_cut_as_the_challenge_does():
    found = challenge_score(table([("a " * 600, "a " * 600, "a " * 700)]), "sapc1")
    assert found.wer == pytest.approx(88 / 600)


def test_one_reference_serves_as_both_and_is_said():
    rows = table([("a b", "a b", "a x")])
    both, one = challenge_score(rows, "sapc2"), challenge_score(rows.drop(columns="reference_fluent"), "sapc2")
    assert one.cer == both.cer and not one.two_references


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="scoring='sapc3': must be one of sapc1, sapc2"):
        challenge_score(table([("a", "a", "a")]), "sapc3")
