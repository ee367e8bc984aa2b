"""Korean: syllables composed (NFC), Latin letters lower-case, no punctuation, single spaces.

Spacing is kept as it is; scores that should not depend on it are character error rates without spaces.
"""

import unicodedata

from moe.text.basic import strip_punctuation

VERSION = "1"


def normalise(text: str) -> str:
    """Composed Hangul, lower-case Latin and digits, divided by single spaces."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).lower())
    return unicodedata.normalize("NFC", strip_punctuation(text).replace("'", ""))
