"""Devanagari (Nepali, Hindi, Marathi): NFC, no joiners, no danda or other punctuation, one kind of digits.

`normalise` writes all digits in Devanagari, `normalise_ascii` in ASCII; choose the one the corpus writes. The zero-width joiner
and non-joiner only choose between forms of the same letters, so they are dropped.
"""

import unicodedata

from moe.text.basic import strip_punctuation

VERSION = "1"

DEVANAGARI_DIGITS = "०१२३४५६७८९"
ASCII_DIGITS = "0123456789"
_TO_DEVANAGARI = str.maketrans(ASCII_DIGITS, DEVANAGARI_DIGITS)
_TO_ASCII = str.maketrans(DEVANAGARI_DIGITS, ASCII_DIGITS)


def normalise(text: str) -> str:
    """Words divided by single spaces, digits in Devanagari."""
    return _words(text).translate(_TO_DEVANAGARI)


def normalise_ascii(text: str) -> str:
    """Words divided by single spaces, digits in ASCII."""
    return _words(text).translate(_TO_ASCII)


def ascii_digits(text: str) -> str:
    """Text with its Devanagari digits in ASCII and all else as it was."""
    return text.translate(_TO_ASCII)


def _words(text: str) -> str:
    # NFC writes the nukta letters (U+0958 to U+095F) as letter and nukta; joiners are format characters, the danda is punctuation
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).lower())
    return unicodedata.normalize("NFC", strip_punctuation(text).replace("'", ""))
