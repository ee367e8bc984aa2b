"""Transcripts of the Speech Accessibility Project, scored as its challenge does: two reference forms and no marks.

Marks: `( … )` false start or repetition, `[ … ]` text the speaker did not say, `w-` cut-off word, `~A` spelled letter, and stray
`* { } % $ #`. `normalise` keeps disfluencies (what was said), `normalise_fluent` drops them; a score takes the better of the two.
"""

import re
import unicodedata

from moe.text.basic import normalise as normalise_basic
from moe.text.numbers import spell_numbers

VERSION = "1"

_UNSPOKEN = re.compile(r"\[[^\[\]]*\]")
_REPEATED = re.compile(r"\([^()]*\)")
_CUT_OFF = re.compile(r"(?<![\w'’-])[\w'’]+-(?![\w-])")  # "w-" but not the "well-" of "well-known"
_SPELLED = re.compile(r"~(\w)")


def normalise(text: str) -> str:
    """What was said: false starts, repetitions and cut-off words kept, without their marks."""
    return _score_text(_drop_nested(_UNSPOKEN, text))


def normalise_fluent(text: str) -> str:
    """What was meant: false starts, repetitions and cut-off words dropped."""
    text = _drop_nested(_REPEATED, _drop_nested(_UNSPOKEN, text))
    return _score_text(_CUT_OFF.sub(" ", text))


def _drop_nested(bracketed: re.Pattern, text: str) -> str:
    """Without the bracketed parts, the innermost first; an unpaired bracket is left and falls with the punctuation."""
    while (shorter := bracketed.sub(" ", text)) != text:
        text = shorter
    return text


def _score_text(text: str) -> str:
    text = unicodedata.normalize(
        "NFKC", _SPELLED.sub(r" \1 ", text)
    )  # also turns non-breaking spaces and ¼ into what can be read
    return normalise_basic(spell_numbers(text))
