"""Nepali: Devanagari as `devanagari` writes it, and numbers in words, as they are read out.

The words are those of nepali-num2word, which a test compares with a table made by hand. It knows no decimals but money and nothing from
10⁹ on; those are read digit by digit here.
"""

import re
import unicodedata

from moe.text import devanagari

VERSION = "1"
LONGEST = 9  # digits; longer ones, such as card numbers, are read digit by digit
POINT, PERCENT = "दशमलव", "प्रतिशत"
_NUMBER = re.compile(r"(?P<whole>\d{1,3}(?:,\d{2,3})+(?!\d)|\d+)(?:\.(?P<fraction>\d+))?(?P<percent> ?%)?", re.ASCII)


def normalise(text: str) -> str:
    """Words divided by single spaces, numbers among them."""
    return devanagari.normalise(spell_numbers(text))


def spell_numbers(text: str) -> str:
    """Text with whole numbers, decimals and percentages in words, whichever digits it has."""
    return _NUMBER.sub(_spell, devanagari.ascii_digits(unicodedata.normalize("NFKC", text)))


def _spell(match: re.Match) -> str:
    digits = match["whole"].replace(",", "")
    is_code = len(digits) > LONGEST or (digits[0] == "0" and len(digits) > 1)
    spoken = [_digits(digits) if is_code else _words(int(digits))]
    if match["fraction"]:
        spoken += [POINT, _digits(match["fraction"])]
    if match["percent"]:
        spoken.append(PERCENT)
    return f" {' '.join(spoken)} "


def _digits(digits: str) -> str:
    return " ".join(_words(int(digit)) for digit in digits)


def _words(number: int) -> str:
    from nepali_num2word import convert_to_words  # only where a Nepali text has a number

    return str(convert_to_words(number, lang="np"))
