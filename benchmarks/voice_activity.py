"""Which speech the gate before decoding rejects, which noise it lets through, and what it costs beside decoding.

python -m benchmarks.voice_activity CORPUS [CORPUS ...] [--base BASE] [--shape tiny]

CORPUS is a folder with `manifest.csv` (path; and split and etiology, where it has them: then the test split, by etiology). BASE is the
folder of a base model: its decoding time of the same utterances is measured too, greedy and 32 at a time. With `--shape tiny` a model
of whisper-tiny's shape and random weights takes its place, with BASE's small vocabulary and at most 4 tokens for a second of audio, both of
which make decoding cheaper than the real one's.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from moe.audio.sampling import SAMPLE_RATE
from moe.audio.voice_activity import SPEECH_THRESHOLD, VoiceActivity
from moe.audio.waveforms import load_audio
from moe.recognition.recognizer import Recognizer, Transcript
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import load_base, new_base
from moe.systems.whisper.base_source import SmallShape
from moe.systems.whisper_moe.zero_shot import base_system

TINY = SmallShape(384, 4, 4, 6, 0.0, window_s=30, hop_length=160, max_target_positions=448)
TINY_TOKENS_PER_S = 4.0  # random weights end no text
N_DECODED = 96  # utterances of each corpus whose decoding is timed, drawn with a fixed seed
LEVELS = (0.003, 0.03, 0.3)  # peak of the noises
Decode = Callable[[Sequence[np.ndarray]], list[Transcript]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--base")
    parser.add_argument("--max_tokens_per_s", type=float, default=30.0)
    parser.add_argument("--threshold", type=float, default=SPEECH_THRESHOLD)
    parser.add_argument("--shape", choices=["tiny"])
    chosen = parser.parse_args(arguments)
    gate = VoiceActivity(chosen.threshold)
    most = TINY_TOKENS_PER_S if chosen.shape else chosen.max_tokens_per_s
    decode = decoder(chosen.base, DecodingOptions(max_tokens_per_s=most), chosen.shape == "tiny") if chosen.base else None
    print(
        "| speech | utterances | rejected | ms of the gate per utterance | share of decoding |\n| --- | --- | --- | --- | --- |"
    )
    for folder in chosen.corpora:
        for name, paths in groups(folder):
            print(speech_row(name, paths, gate, decode), flush=True)
    print("\n| without speech | recordings | let through |\n| --- | --- | --- |")
    for name, sounds in noises():
        print(f"| {name} | {len(sounds)} | {sum(gate.is_speech(sound.astype(np.float32)) for sound in sounds)} |")
    return 0


def decoder(base_dir: str, options: DecodingOptions, tiny: bool = False) -> Decode:
    """Decoding by a base model as it is, or by a new one of whisper-tiny's shape with its tokenizer."""
    base = load_base(base_dir)
    if tiny:
        base = new_base(base.processor.tokenizer, TINY, "en")
        base.model.eval()
    recognizer = Recognizer(base_system(base, Path(base_dir), "en", "basic"))
    return lambda waveforms: recognizer.transcribe(waveforms, options)


def groups(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and recordings of each group of a corpus."""
    table = pd.read_csv(folder / "manifest.csv")
    if "etiology" not in table:
        yield folder.name, [folder / path for path in table["path"]]
        return
    for etiology, rows in table[table["split"] == "test"].groupby("etiology"):
        yield f"{folder.name}, {etiology}", [folder / path for path in rows["path"]]


def speech_row(name: str, paths: Sequence[Path], gate: VoiceActivity, decode: Decode | None) -> str:
    """A row of the table of speech."""
    rejected, seconds = [], 0.0
    for path in paths:
        waveform, started = load_audio(path), time.perf_counter()
        if not gate.is_speech(waveform):
            rejected.append(path.name)
        seconds += time.perf_counter() - started
    shown = f" ({', '.join(rejected[:5])})" if rejected else ""
    share = "" if decode is None else f"{100 * decoding_share(paths, gate, decode):.2f} %"
    return f"| {name} | {len(paths)} | {len(rejected)}{shown} | {1000 * seconds / len(paths):.2f} | {share} |"


def decoding_share(paths: Sequence[Path], gate: VoiceActivity, decode: Decode) -> float:
    """Time of the gate by that of decoding the same utterances together, each the least of three."""
    drawn = np.random.default_rng(0).permutation(len(paths))[:N_DECODED]
    waveforms = [load_audio(paths[index]) for index in drawn]
    times: dict[str, list[float]] = {"gate": [], "decoding": []}
    for _ in range(3):
        started = time.perf_counter()
        for waveform in waveforms:
            gate.is_speech(waveform)
        middle = time.perf_counter()
        decode(waveforms)
        times["gate"].append(middle - started)
        times["decoding"].append(time.perf_counter() - middle)
    return min(times["gate"]) / min(times["decoding"])


def noises() -> Iterator[tuple[str, list[np.ndarray]]]:
    """Sounds without speech at three levels, (n_samples,) each, by name; always the same."""
    random = np.random.default_rng(0)
    yield (
        "silence, offset, one sample",
        [np.zeros(48_000), np.full(48_000, 0.18), np.full(1, 0.04), np.zeros(1), np.full(100, -0.5)],
    )
    for slope, name in ((0, "white"), (1, "pink"), (2, "brown")):
        yield f"{name} noise, 1 to 20 s", [level * noise(s, slope, random) for level in LEVELS for s in (1, 4, 20)]
        yield (
            f"{name} noise in bursts",
            [level * noise(4, slope, random) * bursts(4, n, random) for level in LEVELS for n in (1, 2, 3, 4, 6, 8)],
        )
        yield (
            f"{name} noise that swells at 0.4 to 6 Hz",
            [level * noise(6, slope, random) * (0.5 + 0.5 * tones(6, rate)) for level in LEVELS for rate in (0.4, 2, 4, 6)],
        )
    hums = [(base, n) for base in (50, 60, 100, 120, 180, 400, 1000) for n in (1, 3, 7, 19)]
    yield (
        "hum with up to 19 harmonics",
        [level * np.sum([tones(3, base * k) / k for k in range(1, n + 1)], axis=0) for level in LEVELS for base, n in hums],
    )
    yield (
        "hum with noise",
        [level * (tones(3, 50) + tones(3, 150) / 3 + 0.3 * noise(3, 1, random)) for level in LEVELS for _ in range(3)],
    )
    yield "clicks", [level * (random.random(48_000) < share) for level in LEVELS for share in (1e-4, 1e-3)]
    yield (
        "chords that fade",
        [
            level * np.exp(-np.arange(48_000) / SAMPLE_RATE) * sum(tones(3, f) for f in chord) / 3
            for level in LEVELS
            for chord in ((261, 329, 392), (220, 277, 330))
        ],
    )


def tones(seconds: float, hertz: float) -> np.ndarray:
    """A sine."""
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


def noise(seconds: float, slope: float, random: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency to the power of `slope`, peak 1."""
    spectrum = np.fft.rfft(random.standard_normal(int(seconds * SAMPLE_RATE)))
    sound = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2))
    return sound / np.abs(sound).max()


def bursts(seconds: float, n: int, random: np.random.Generator) -> np.ndarray:
    """1 in `n` bursts of 20 to 250 ms, 0 between them."""
    envelope = np.zeros(int(seconds * SAMPLE_RATE))
    for start in random.integers(0, len(envelope) - SAMPLE_RATE // 4, n):
        envelope[start : start + random.integers(SAMPLE_RATE // 50, SAMPLE_RATE // 4)] = 1
    return envelope


if __name__ == "__main__":
    raise SystemExit(main())
