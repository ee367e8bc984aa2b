"""English numbers in words, for normalisers that score words: digits on one side and words on the other are no error."""

import re

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
LONGEST = 12  # digits; longer ones, such as card numbers, are read digit by digit
IRREGULAR = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}

_TOKEN = re.compile(
    r"(?P<dollar>\$ ?)?(?<![\d])(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
    r"(?:\.(?P<fraction>\d+)|:(?P<minutes>[0-5]\d)(?!\d)|(?P<ordinal>st|nd|rd|th)(?![^\W\d_]))?(?P<percent> ?%)?",
    re.IGNORECASE | re.ASCII,
)


def spell_numbers(text: str) -> str:
    """Text with cardinals, ordinals, decimals, clock times, dollars and percentages in words."""
    return _TOKEN.sub(_spell, text)


def cardinal(number: int) -> str:
    """A whole number from 0 to 10¹² − 1 in words, without `and`: 321 is `three hundred twenty one`."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    scale, name = next((scale, name) for scale, name in SCALES if number >= scale)
    rest = f" {cardinal(number % scale)}" if number % scale else ""
    return f"{cardinal(number // scale)} {name}{rest}"


def ordinal(number: int) -> str:
    """A whole number as an ordinal in words: 21 is `twenty first`."""
    *words, last = cardinal(number).split()
    last = IRREGULAR.get(last, last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join([*words, last])


def _spell(match: re.Match) -> str:
    digits = match["whole"].replace(",", "")
    spoken = _digits(digits) if len(digits) > LONGEST or (digits[0] == "0" and len(digits) > 1) else _whole(digits, match)
    if match["fraction"]:
        spoken += f" point {_digits(match['fraction'])}"
    if match["minutes"] and match["minutes"] != "00":
        spoken += (" oh " if match["minutes"][0] == "0" else " ") + cardinal(int(match["minutes"]))
    unit = " dollars" if match["dollar"] else " percent" if match["percent"] else ""
    return f" {spoken}{unit} "


def _whole(digits: str, match: re.Match) -> str:
    return ordinal(int(digits)) if match["ordinal"] else cardinal(int(digits))


def _digits(digits: str) -> str:
    return " ".join(ONES[int(digit)] for digit in digits)
