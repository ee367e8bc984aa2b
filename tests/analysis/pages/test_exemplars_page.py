"""The page of exemplars: every expert is there, every clip is inside, text is text."""

import re

import pandas as pd
import pytest

from analysis.pages.clips import Clip
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
CLIPS = {
    name: Clip(f"data:audio/mpeg;base64,{data}", f"data:image/png;base64,{data}")
    for name, data in (("a/1", "AAAA"), ("b", "BBBB"))
}


def test_every_clip_is_inside_the_page_and_nothing_is_loaded() -> None:
    page = exemplars_html(EXEMPLARS, PROFILES, CLIPS, note="synthetic")
    assert re.findall(r"src='([^']*)'", page) == [part for clip in CLIPS.values() for part in (clip.audio, clip.picture)]
    assert "http" not in page and "synthetic" in page and "99%" in page and "one &amp; two" in page and "&lt;b&gt;" in page


def test_an_expert_without_utterances_is_named() -> None:
    assert re.search(r"Expert 1</h2><p>No utterance", exemplars_html(EXEMPLARS, PROFILES, CLIPS))


def test_an_exemplar_without_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="exemplars without audio: .*b"):
        exemplars_html(EXEMPLARS, PROFILES, {"a/1": CLIPS["a/1"]})


def test_without_sharing_audio_the_page_has_none_and_says_so() -> None:
    page = exemplars_html(EXEMPLARS, PROFILES, None, note="synthetic")
    assert (
        "data:" not in page
        and "<audio" not in page
        and "synthetic · without audio: share_audio=false" in page
        and "one &amp; two" in page
    )
