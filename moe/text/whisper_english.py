"""Whisper's English normaliser as transformers ships it: contractions expanded, fillers dropped, numbers as digits.

Its table of British and American spellings comes with a tokenizer, not with the library; it is not used here, on either side of a
score, and the version says so.
"""

import functools
from collections.abc import Callable
from importlib.metadata import version

VERSION = f"1-transformers-{version('transformers')}-no-spellings"


def normalise(text: str) -> str:
    """Text as Whisper's published English word error rates score it, but for the spelling table."""
    return _normaliser()(text)


@functools.lru_cache(maxsize=1)
def _normaliser() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer  # seconds to import, and rarely wanted

    return EnglishTextNormalizer({})
