"""The transcript in a Praat TextGrid: the labels of its tier of words or utterances, in their order."""

from typing import Any

from praatio.utilities import textgrid_io
from praatio.utilities.constants import INTERVAL_TIER
from praatio.utilities.errors import PraatioException

TIERS = (
    "transcript",
    "transcription",
    "utterance",
    "utterances",
    "sentence",
    "sentences",
    "text",
    "orthography",
    "words",
    "word",
)
SILENCES = ("", "sil", "sp", "<sil>", "<p:>")  # of Montreal Forced Aligner and MAUS


def transcript_of_textgrid(text: str) -> str:
    """The transcript in the text of a TextGrid file, long or short.

    Raises:
        ValueError: it is no TextGrid, or does not say which of its tiers is the transcript.
    """
    try:
        tiers = textgrid_io.parseTextgridStr(text.replace("\r\n", "\n").replace("\r", "\n"))["tiers"]
        labels = [str(entry[-1]).strip() for entry in _tier(tiers)["entries"]]
    except (PraatioException, KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"no TextGrid with a transcript ({error})") from error
    return " ".join(label for label in labels if label not in SILENCES)


def _tier(tiers: list[dict[str, Any]]) -> dict[str, Any]:
    intervals = [tier for tier in tiers if tier["class"] == INTERVAL_TIER]
    named = [tier for name in TIERS for tier in intervals if tier["name"].strip().casefold() == name]
    if not named and len(intervals) != 1:
        names = ", ".join(repr(tier["name"]) for tier in intervals) or "none"
        raise ValueError(f"its tiers are {names}: one must be called {', '.join(TIERS)}")
    return (named or intervals)[0]
