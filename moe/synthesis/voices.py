"""Speakers: an espeak accent and variant with a pitch, a range, a rate, a tape speed and a severity, drawn from a key.

The key holds the corpus's purpose and seed, the style, the split and a number. So a speaker does not change when others are
added, and no speaker of the pretraining corpus is in the experiment's.
"""

import dataclasses
import hashlib

import numpy as np

from moe.synthesis.espeak import Prosody

RESERVED_VARIANTS = ("m5", "f4")  # not in training: only held-out speakers have them
VARIANTS = tuple(
    name for name in [f"m{i}" for i in range(1, 9)] + [f"f{i}" for i in range(1, 6)] if name not in RESERVED_VARIANTS
)
PITCH, PITCH_RANGE, RATE, SEVERITY, TAPE_SPEED = (30, 70), (35, 65), (150, 195), (0.6, 1.0), (0.93, 1.08)
NO_TAPE_SPEED_SHARE = 0.3
ARTICULATION_STRENGTH = 0.7  # share of the consonants concerned that are replaced at severity 1
OWN_WAYS = "own_ways"  # etiology of speakers whose way of speaking nobody else has


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A voice that speaks in one style.

    `tape_speed` multiplies pitch, formants and rate together; `severity` in [0, 1] is how strong the style is.
    `articulation` names the style whose consonants are replaced, where it is another than that of voice and rhythm;
    `articulation_strength` is the share of the consonants concerned that are replaced at severity 1.
    """

    name: str
    style: str
    voice: str
    prosody: Prosody
    tape_speed: float
    severity: float
    articulation: str | None = None
    articulation_strength: float = ARTICULATION_STRENGTH

    @property
    def etiology(self) -> str:
        """The style, or `own_ways` where articulation and voice are of two styles."""
        return self.style if self.articulation is None else OWN_WAYS


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator that depends on the key's text alone."""
    digest = hashlib.sha256("\n".join(map(str, key)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def make_speaker(name: str, style: str, key: tuple, accents: tuple[str, ...], variants: tuple[str, ...] = VARIANTS) -> Speaker:
    """The speaker of a key: every trait is drawn from the key's own generator."""
    rng = keyed_generator("speaker", *key)
    voice = f"{accents[rng.integers(len(accents))]}+{variants[rng.integers(len(variants))]}"
    prosody = Prosody(pitch=rng.uniform(*PITCH), pitch_range=rng.uniform(*PITCH_RANGE), rate=rng.uniform(*RATE))
    tape_speed = 1.0 if rng.random() < NO_TAPE_SPEED_SHARE else rng.uniform(*TAPE_SPEED)
    severity = rng.uniform(*SEVERITY)
    return Speaker(name, style, voice, prosody, tape_speed, 0.0 if style == "typical" else severity)
