"""The plain normaliser, for any language: NFKC, lower case, no punctuation but apostrophes within words, single spaces."""

import re
import unicodedata

VERSION = "1"

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇`´", "'"))
_STRAY_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")


def normalise(text: str) -> str:
    """Lower-case words and numbers, divided by single spaces."""
    text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).translate(APOSTROPHES)
    text = unicodedata.normalize("NFKC", text.casefold())
    return strip_punctuation(text)


def strip_punctuation(text: str) -> str:
    """Only letters, marks, digits and in-word apostrophes, divided by single spaces; format characters vanish."""
    kept = "".join(_keep(character) for character in text)
    return " ".join(_STRAY_APOSTROPHE.sub(" ", kept).split())


def _keep(character: str) -> str:
    category = unicodedata.category(character)
    if character == "'" or category[0] in "LMN":
        return character
    return "" if category == "Cf" else " "
