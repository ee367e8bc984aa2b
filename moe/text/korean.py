"""Korean: syllables composed (NFC), Latin letters lower-case, no punctuation, single spaces; the plain form has Hangul and digits alone.

Spacing is kept as it is; scores that should not depend on it are character error rates without spaces.
"""

import re
import unicodedata

from moe.text.basic import strip_punctuation

VERSION = "1"
_NOT_PLAIN = re.compile(r"[^가-힣0-9 ]+")


def normalise(text: str) -> str:
    """Composed Hangul, lower-case Latin and digits, divided by single spaces."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).lower())
    return unicodedata.normalize("NFC", strip_punctuation(text).replace("'", ""))


def normalise_plain(text: str) -> str:
    """Whole syllables and the digits 0 to 9 alone, divided by single spaces (document 003)."""
    return " ".join(_NOT_PLAIN.sub(" ", normalise(text)).split())
