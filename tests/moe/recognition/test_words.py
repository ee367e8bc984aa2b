"""Words have times of their own, in order, also where an alignment puts several at one moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.recognition.words import Word, spread

MOMENTS = st.integers(0, 20).map(lambda tenths: tenths / 10)  # few, so that words often share one


@st.composite
def aligned(draw: st.DrawFn) -> list[Word]:
    texts = draw(st.lists(st.sampled_from(["a", "is", "paper"]), max_size=8))
    times = sorted(draw(st.lists(MOMENTS, min_size=len(texts) + 1, max_size=len(texts) + 1)))
    return [Word(text, start, end, 0.5) for text, start, end in zip(texts, times, times[1:], strict=False)]


@given(aligned())
def test_every_word_lasts_and_what_lasted_alone_stays_as_it_is(words: list[Word]) -> None:
    found = spread(words)
    if not words or words[0].start_s == words[-1].end_s:
        assert found == ()
        return
    assert [word.word for word in found] == [word.word for word in words]
    assert all(word.end_s > word.start_s for word in found)
    assert all(one.end_s <= other.start_s + 1e-9 for one, other in zip(found, found[1:], strict=False))
    assert (found[0].start_s, found[-1].end_s) == (words[0].start_s, words[-1].end_s)
    if all(word.end_s > word.start_s for word in words):
        assert found == tuple(words)


def test_words_at_one_moment_share_by_letters_what_follows_and_at_the_end_what_came_before() -> None:
    words = [Word("a", 1, 1, 1), Word("dog", 1, 2, 1), Word("ran", 2, 3, 1), Word("off", 3, 3, 1)]
    found = [(word.word, word.start_s, word.end_s) for word in spread(words)]
    assert found == [("a", 1, 1.25), ("dog", 1.25, 2), ("ran", 2, pytest.approx(2.5)), ("off", pytest.approx(2.5), 3)]
