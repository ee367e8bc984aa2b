"""Names that are the same text however they are written: composed or decomposed, with a straight or curly apostrophe, with space around.

Case is no part of that: names that differ in case alone stay apart, and are reported.
"""

import unicodedata

APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\u2032\uff07\u00b4`", "'"))
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # at the ends only: within a word some scripts need them


def canonical(name: str) -> str:
    """The one form of a name: NFC (Unicode Standard Annex 15), straight apostrophes, no space or invisible character around it."""
    if name.isascii():
        return name.strip().replace("`", "'")
    return unicodedata.normalize("NFC", name).translate(APOSTROPHES).strip().strip(INVISIBLE).strip()
