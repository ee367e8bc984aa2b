"""Normalisers by name: the one way from a raw transcript or a hypothesis to the text that is scored.

Each is a named, versioned function, the same for reference and hypothesis. A family is a file; a new one is an entry in
`NORMALISERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from moe.text import basic, devanagari, korean, nepali, raw, sap, whisper_english


@dataclass(frozen=True)
class Normaliser:
    """A normaliser: its version is raised whenever its output may change. `alternative` is its second reference form."""

    version: str
    normalise: Callable[[str], str]
    alternative: Callable[[str], str] | None = None


RAW = "raw"
NORMALISERS: dict[str, Normaliser] = {
    "basic": Normaliser(basic.VERSION, basic.normalise),
    "sap": Normaliser(sap.VERSION, sap.normalise, sap.normalise_fluent),
    "sap_fluent": Normaliser(sap.VERSION, sap.normalise_fluent),
    "whisper_english": Normaliser(whisper_english.VERSION, whisper_english.normalise),
    "korean": Normaliser(korean.VERSION, korean.normalise),
    "korean_plain": Normaliser(korean.VERSION, korean.normalise_plain),
    "devanagari": Normaliser(devanagari.VERSION, devanagari.normalise),
    "devanagari_ascii": Normaliser(devanagari.VERSION, devanagari.normalise_ascii),
    "nepali": Normaliser(nepali.VERSION, nepali.normalise),
    RAW: Normaliser(raw.VERSION, raw.normalise),
}
NAMES = tuple(NORMALISERS)
AUTO = "auto"  # a language's own
OF_LANGUAGE = {
    "ko": "korean",
    "ne": "nepali",
    "hi": "devanagari",
    "mr": "devanagari",
    "sa": "devanagari",
}  # the others have basic


def own_normaliser(name: str, language: str) -> str:
    """The name of a normaliser: the language's own where `auto` is asked for."""
    return OF_LANGUAGE.get(language, "basic") if name == AUTO else name


def normalise(name: str, text: str) -> str:
    """The text as it is scored.

    Raises:
        ValueError: no normaliser of that name.
    """
    return _named(name).normalise(text)


def references(name: str, text: str) -> tuple[str, ...]:
    """All reference forms of a transcript, the main one first: two for `sap` (with and without disfluencies), one for the others.

    Raises:
        ValueError: no normaliser of that name.
    """
    normaliser = _named(name)
    main = normaliser.normalise(text)
    return (main, normaliser.alternative(text)) if normaliser.alternative else (main,)


def normaliser_version(name: str) -> str:
    """Name and version as logged beside every score, such as `sap/1`.

    Raises:
        ValueError: no normaliser of that name.
    """
    return f"{name}/{_named(name).version}"


def _named(name: str) -> Normaliser:
    if name not in NORMALISERS:
        raise ValueError(f"normaliser={name!r}: must be one of {', '.join(NAMES)}")
    return NORMALISERS[name]
