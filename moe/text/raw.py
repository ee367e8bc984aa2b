"""A transcript as it is written, with its casing and punctuation: what a model learns to write under `references=raw`."""

import unicodedata

VERSION = "1"


def normalise(text: str) -> str:
    """The text in composed form (NFC), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())
