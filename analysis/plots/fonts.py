"""Text in any script: drawn in an installed font that has its letters, without the letters that none has."""

import functools
import re

from matplotlib import font_manager, get_data_path

OWN = "DejaVu Sans"  # matplotlib's, always there
LEFT_OUT = "…"


def drawable(text: str) -> tuple[str, list[str]]:
    """A text as it can be drawn, and the font families to draw it in: letters that no font here has become an ellipsis."""
    missing = _letters(text) - _letters_of(font_manager.findfont(OWN))
    if not missing:
        return text, [OWN]
    for font in font_manager.fontManager.ttflist:
        # of matplotlib's other fonts one draws a box for every letter, and some have symbols in the place of letters
        if not font.fname.startswith(get_data_path()) and missing <= _letters_of(font.fname):
            return text, [OWN, font.name]
    letters = f"[{re.escape(''.join(map(chr, sorted(missing))))}]"
    return re.sub(rf"{letters}+(\s+{letters}+)*", LEFT_OUT, text), [OWN]


def _letters(text: str) -> set[int]:
    return {ord(letter) for letter in text if not letter.isspace()}


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(path).get_charmap())
