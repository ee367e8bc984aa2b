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
    return " ".join(_STRAY_APOSTROPHE.sub(" ", text.translate(_KEPT)).split())


class _Kept(dict[int, str]):
    """What becomes of a code point, found out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        kept = character if character == "'" or category[0] in "LMN" else "" if category == "Cf" else " "
        self[code] = kept
        return kept


_KEPT = _Kept()
