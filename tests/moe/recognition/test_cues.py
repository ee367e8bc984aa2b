"""Cues fit a screen and hold all of the text, whatever the segments and whether words are timed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.recognition.cues import LINES, MOST_S, WIDTH, Cue, cues
from moe.recognition.recognizer import Segment, Transcript
from moe.recognition.words import Word

WORDS = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=90)


def transcript(*segments: Segment) -> Transcript:
    return Transcript(" ".join(each.text for each in segments), segments, (), 0.5)


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    found, now = [], 0.0
    for _ in range(draw(st.integers(0, 4))):
        words = draw(st.lists(WORDS, max_size=30))
        times = sorted(draw(st.lists(st.floats(0, 60), min_size=2 * len(words), max_size=2 * len(words))))
        timed = tuple(
            Word(word, now + start, now + end, 0.5) for word, start, end in zip(words, times[::2], times[1::2], strict=True)
        )
        found.append(Segment(now, now + 60, " ".join(words), 0.5, words=timed if draw(st.booleans()) else ()))
        now += 60
    return found


@given(segments())
def test_cues_fit_a_screen_come_in_order_and_hold_all_of_the_text(given_segments: list[Segment]) -> None:
    found = cues(transcript(*given_segments))
    for cue in found:
        lines = cue.text.split("\n")
        assert 1 <= len(lines) <= LINES and all(0 < len(line) <= WIDTH for line in lines)
        assert 1e-3 < cue.end_s - cue.start_s <= MOST_S + 1e-6
    assert all(one.end_s <= other.start_s + 1e-6 for one, other in zip(found, found[1:], strict=False))
    said = "".join("".join(each.text.split()) for each in given_segments)
    assert "".join("".join(cue.text.split()) for cue in found) == said


def test_a_cue_ends_at_a_pause_and_at_seven_seconds() -> None:
    words = [Word("one", 0, 1, 1), Word("two", 1, 2, 1), Word("three", 4, 5, 1), Word("four", 5, 6, 1), Word("five", 6, 30, 1)]
    found = cues(transcript(Segment(0, 30, "one two three four five", 1, words=tuple(words))))
    assert [cue.text for cue in found] == ["one two", "three four", "five"]
    assert found[-1] == Cue(6, 13, "five")


@pytest.mark.parametrize("at", [10.0, 12.0, 20.0])
def test_words_that_would_flash_by_are_shown_for_their_share_of_the_segment(at: float) -> None:
    """Real speech under a base that does not know it: the alignment puts words where nobody speaks, and they end at an edge."""
    words = (Word("one", 10, 11, 1), Word("two", at, at, 1), Word("three", at, at, 1))
    found = cues(transcript(Segment(10, 20, "one two three", 1, words=words)))
    assert "".join(cue.text for cue in found).replace(" ", "") == "onetwothree"
    assert all(cue.end_s - cue.start_s > 1 for cue in found)


def test_without_times_a_segment_is_shared_by_letters() -> None:
    text = "a" * 20 + " " + "b" * 20 + " " + "c" * 20 + " " + "d" * 20 + " " + "e" * 16
    first, second = cues(transcript(Segment(10.0, 20.0, text, 0.5)))
    assert first.start_s == 10 and first.end_s == second.start_s == pytest.approx(10 + 10 * 63 / 100)
    assert first.text == "a" * 20 + " " + "b" * 20 + "\n" + "c" * 20 and second.end_s == pytest.approx(20)
