"""Misarticulation: espeak's phoneme names of a sentence with some consonants replaced by chance, spoken as `[[…]]`.

Which consonant becomes which is the style's; how often is its severity's. The substitutions follow the textbook description of
each disorder in caricature: weak closures, nasalised stops, stopping, voicing errors, fronting and gliding.
"""

import re
from collections.abc import Mapping

import numpy as np

CONSONANT = re.compile(r"tS|dZ|[SZTDNpbtdkgfvszhmnlrwj]")
CLUSTER = re.compile(r"(tS|dZ|[SZTDNpbtdkgfvszhmnlrwj])([lrwptkm])")
VARIANT_MARK = re.compile(r"(?<=[tdwr])[#-]")  # flapped or linking allophones: replaced sounds have no such variants

WEAK_CLOSURES = {"p": "f", "t": "s", "k": "h", "tS": "S", "dZ": "Z", "b": "v"}
NASALISED = {"b": "m", "d": "n", "g": "N", "p": "b", "t": "d", "k": "g"}
STOPPING = {"s": "t", "z": "d", "f": "p", "v": "b", "S": "t", "T": "t", "D": "d", "h": ""}
VOICING_ERRORS = {"p": "b", "b": "p", "t": "d", "d": "t", "k": "g", "g": "k", "f": "v", "v": "f", "s": "z", "z": "s"}
FRONTING_AND_GLIDING = {"k": "t", "g": "d", "N": "n", "r": "w", "l": "w", "T": "f", "D": "v"}


def misarticulate(
    phonemes: str, substitutions: Mapping[str, str], probability: float, rng: np.random.Generator, reduce_clusters: bool = False
) -> str:
    """The phoneme string with each consonant of `substitutions` replaced with `probability`.

    With `reduce_clusters` a cluster of two consonants loses one with the same probability: the first if it is s, else the second.
    """
    phonemes = VARIANT_MARK.sub("", phonemes)
    if reduce_clusters:
        phonemes = CLUSTER.sub(lambda pair: _reduced(pair) if rng.random() < probability else pair[0], phonemes)
    return CONSONANT.sub(
        lambda sound: substitutions.get(sound[0], sound[0]) if rng.random() < probability else sound[0], phonemes
    )


def _reduced(pair: re.Match) -> str:
    return pair[2] if pair[1] == "s" else pair[1]
