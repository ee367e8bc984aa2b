"""The page of exemplars: every expert is there, every clip is inside, text is text."""

import re

import pandas as pd
import pytest

from analysis.pages.exemplars_page import exemplars_html

PROFILES = pd.DataFrame(
    {
        "expert": [0, 1],
        "n_utterances": [2, 0],
        "n_speakers": [2, 0],
        "main_group": ["als", "–"],
        "main_share": [0.5, float("nan")],
    }
)
EXEMPLARS = pd.DataFrame(
    {
        "expert": [0, 0], "weight": [0.99, 0.9], "utterance_id": ["a/1", "b"], "etiology": ["als", "<b>"], "speaker": ["s", "t"],
        "duration_s": [1.25, 2.0], "reference": ["one & two", "three"],
    }
)  # fmt: skip
AUDIO = {"a/1": "data:audio/mpeg;base64,AAAA", "b": "data:audio/mpeg;base64,BBBB"}


def test_every_clip_is_inside_the_page_and_nothing_is_loaded() -> None:
    page = exemplars_html(EXEMPLARS, PROFILES, AUDIO, note="synthetic")
    assert re.findall(r"src='([^']*)'", page) == list(AUDIO.values())
    assert "http" not in page and "synthetic" in page and "99%" in page and "one &amp; two" in page and "&lt;b&gt;" in page


def test_an_expert_without_utterances_is_named() -> None:
    assert re.search(r"Expert 1</h2><p>No utterance", exemplars_html(EXEMPLARS, PROFILES, AUDIO))


@pytest.mark.parametrize("audio", [{}, {**AUDIO, "b": "https://example.org/b.mp3"}])
def test_an_exemplar_without_audio_is_refused(audio: dict) -> None:
    with pytest.raises(ValueError, match="exemplars without audio: .*b"):
        exemplars_html(EXEMPLARS, PROFILES, audio)
