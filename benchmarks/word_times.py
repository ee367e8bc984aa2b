"""How far the word times of a base model are from those at which espeak-ng began each word.

    python -m benchmarks.word_times [--base base/synthetic-en]

Typical speech of six voices, eight sentences each, with noise and a tenth of a second of silence at the edges; words of utterances that
were recognised as they were said count, where espeak-ng began each by itself: it says some pairs ("in the") as one.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soxr

from moe.audio.sampling import SAMPLE_RATE
from moe.recognition.recognizer import Recognizer
from moe.synthesis.espeak import SAMPLE_RATE as ESPEAK_RATE
from moe.synthesis.espeak import Espeak, Prosody
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper_moe.zero_shot import base_system

EDGE_S, NOISE = 0.1, 1e-3
VOICES = ("en-us", "en-us+f2", "en+m3", "en-us+m1", "en+f4", "en-us+m5")
TEXTS = (
    "where is my blue cup", "sarah is in the kitchen tonight", "please move the key", "sarah needed a small dog", "i bought the bread",
    "call five six two one", "close the soft door now", "open the wet window",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="base/synthetic-en")
    given = parser.parse_args(arguments)
    recognizer = recognizer_of(Path(given.base))
    errors, n_right, n_timed, n_all = [], 0, 0, 0
    for text, waveform, starts_s in utterances():
        (found,) = recognizer.transcribe([waveform], DecodingOptions(word_times=True))
        n_all += 1
        is_right = found.text == text
        n_right += is_right
        if is_right and len(starts_s) == len(found.words):
            n_timed += 1
            errors += [word.start_s - start for word, start in zip(found.words, starts_s, strict=True)]
    sizes = np.abs(errors)
    print(f"| utterances | recognised | timed | words | median error, s | 90 % below, s | bias, s |\n| {'--- | ' * 7}".rstrip())
    print(
        f"| {n_all} | {n_right} | {n_timed} | {len(errors)} | {np.median(sizes):.3f} | {np.quantile(sizes, 0.9):.3f} | {np.median(errors):+.3f} |"
    )
    return 0


def recognizer_of(folder: Path) -> Recognizer:
    """A base model as it is, with the gate before decoding that serving has."""
    return Recognizer(base_system(load_base(str(folder)), folder, "en", "basic"), 0.3)


def utterances() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Text, waveform (n_samples,) at 16 kHz and the second at which each word begins."""
    random = np.random.default_rng(0)
    for number, voice in enumerate(VOICES):
        for text in TEXTS:
            with Espeak(voice, 0) as espeak:
                spoken = espeak.speak(text, Prosody(rate=150, pitch=40 + 4 * number, pitch_range=50))
            waveform = np.pad(soxr.resample(spoken.samples, ESPEAK_RATE, SAMPLE_RATE), int(EDGE_S * SAMPLE_RATE))
            noisy = (waveform + random.normal(0, NOISE, len(waveform))).astype(np.float32)
            yield text, noisy, spoken.word_starts / ESPEAK_RATE + EDGE_S


if __name__ == "__main__":
    raise SystemExit(main())
