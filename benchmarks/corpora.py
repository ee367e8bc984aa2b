"""Corpora side by side: a manifest of a million rows (time, peak memory), and decoding in × real time by decoder and resampler.

    python -m benchmarks.corpora million [N_ROWS]
    python -m benchmarks.corpora memory [N_ROWS]
    python -m benchmarks.corpora decoding [FLAC_OR_WAV_FILE …]

The first builds, splits, samples and writes a manifest of a folder corpus whose audio is not there (decoding has its own cost and
its own benchmark). The second trains on nothing, but opens such a manifest as a training does, with a hundred shards, and goes through two epochs' order
and some batches of each: what one process holds. The third encodes speech (or noise bursts where no file is given) as each container at 44.1 kHz stereo and 16
kHz mono, and times on one core: ours, PyAV for everything, and soundfile with SciPy's polyphase resampler.
"""

import contextlib
import csv
import io
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pandas as pd
import soundfile

from benchmarks.memory import resident_peak_mib
from moe.audio.sampling import SAMPLE_RATE, resample
from moe.audio.waveforms import load_audio

ETIOLOGIES = ("ALS", "Cerebral Palsy", "Down Syndrome", "Parkinson's Disease", "Stroke")
CONTAINERS = ("wav", "flac", "mp3", "opus", "m4a")
SOURCES = ((44_100, 2), (16_000, 1))  # Hz, channels
REPEATS = 3
N_SHARDS, MEMORY_BATCH, MEMORY_BATCHES = 100, 32, 100

if TYPE_CHECKING:
    from steps.inputs.corpus import Prepared


def million(n_rows: int = 1_000_000) -> None:
    """List, normalise, split, report, sample and write; prints seconds of each and the peak memory of the process."""
    from moe.corpora.formats.table import CorpusOptions
    from moe.corpora.leaks import refuse_leaks
    from moe.corpora.listing import list_corpus
    from moe.corpora.manifest import write_manifest
    from moe.corpora.preparation import add_references
    from moe.corpora.quarantine import mark_duplicate_ids, mark_transcripts
    from moe.corpora.splits import SplitPlan, assign_splits
    from moe.corpora.subsets import at_most, subset
    from moe.corpora.summaries import corpus_statistics

    with tempfile.TemporaryDirectory() as folder:
        with _timed("write the corpus's table (not counted)"):
            _write_table(Path(folder) / "manifest.csv", n_rows)
        start = time.perf_counter()
        with _timed("list"):
            table = list_corpus("folder", folder, CorpusOptions()).utterances
        with _timed("normalise"):
            table = add_references(table, "sap")
        with _timed("duplicates and empty transcripts"):
            mark_transcripts(table)
            mark_duplicate_ids(table)
        with _timed("split"):
            table["split"] = assign_splits(table, SplitPlan(mode="by_speaker"))
        table["duration_s"] = np.random.default_rng(0).uniform(1, 10, len(table))
        table = table.drop(columns=["reason", "detail"]).assign(audio_digest=table["utterance_id"])
        with _timed("leak report and statistics"):
            refuse_leaks(table)
            corpus_statistics(table)
        with _timed("subsets 5, 15, 100 % and max_samples"):
            sizes = [len(subset(table, percent, 0)) for percent in (5, 15, 100)] + [len(at_most(table, n_rows // 10, 0))]
        with _timed("check and write"):
            write_manifest(Path(folder) / "manifest.parquet", table)
        print(f"{n_rows} rows, subsets {sizes}: {time.perf_counter() - start:.1f} s, peak {resident_peak_mib() / 2**10:.2f} GiB")


def memory(n_rows: int = 1_000_000) -> None:
    """Open a manifest as a training step does, and go through two epochs; prints the peak memory of this process after each stage."""
    from moe.systems.whisper.base_model import load_base
    from moe.systems.whisper.features import AudioContextOptions
    from moe.systems.whisper.inputs import WhisperInputs
    from moe.training.batches import LengthGroupedSampler, Shares, collate, length_batches
    from moe.training.dataset import SpeechDataset

    with tempfile.TemporaryDirectory() as folder:
        spawned = multiprocessing.get_context("spawn").Process(target=_write_shards, args=(Path(folder), n_rows))
        spawned.start()
        spawned.join()
        with _timed("load the shipped base"):
            inputs = WhisperInputs(load_base("base/synthetic-en").processor, AudioContextOptions())
        with _timed("read the manifest"):
            prepared = _prepared(Path(folder))
        with _timed("train and dev split"):
            train = prepared.train(100.0, 100.0, 2000, 42)
            dev = prepared.dev(len(train), 0.5, 42)
        with _timed("data sets"):
            train_set = SpeechDataset(train, prepared.root, inputs, trains=True)
            plain_set, dev_set = (SpeechDataset(rows, prepared.root, inputs) for rows in (train, dev))
        sampler = LengthGroupedSampler(train_set.durations, MEMORY_BATCH, 42)
        for epoch in range(2):
            with _timed(f"order of epoch {epoch + 1}, {MEMORY_BATCHES} batches of {MEMORY_BATCH}"):
                sampler.set_epoch(epoch)
                for _, draws in zip(range(MEMORY_BATCHES), Shares(sampler, MEMORY_BATCH), strict=False):
                    collate(train_set, [train_set[draw] for draw in draws])
        with _timed(f"dev, {len(dev_set)} utterances, in batches; {MEMORY_BATCHES} of them"):
            for batch in length_batches(dev_set, MEMORY_BATCH)[:MEMORY_BATCHES]:
                collate(dev_set, [dev_set[int(index)] for index in batch])
        print(f"{n_rows} rows, {len(plain_set)} of train: peak {resident_peak_mib() / 2**10:.2f} GiB")


def _write_shards(folder: Path, n_rows: int) -> None:
    """A manifest over `N_SHARDS` tars, each with texts beside its recordings; on the disk they are one, under so many names."""
    from moe.corpora.manifest import write_manifest

    n_each = -(-n_rows // N_SHARDS)
    buffer = io.BytesIO()
    soundfile.write(buffer, _bursts(0.5), SAMPLE_RATE, format="FLAC")
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for number in range(n_each):
            for ending, data in (("flac", buffer.getvalue()), ("txt", b"please call"), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for shard in range(1, N_SHARDS):
        os.link(folder / "000000.tar", folder / f"{shard:06d}.tar")
    numbers = np.arange(n_rows)
    speakers, shards = numbers * 7919 % 2000, numbers // n_each
    texts = pd.Series([f"please call number {number % 400_000} and wait" for number in range(n_rows)])
    table = pd.DataFrame({
        "utterance_id": [f"{shard:06d}/{number % n_each:06d}" for number, shard in zip(numbers, shards, strict=True)],
        "audio": [f"{shard:06d}.tar" for shard in shards], "member": [f"{number % n_each:06d}.flac" for number in numbers],
        "transcript": texts, "reference": texts, "speaker": [f"s{speaker:04d}" for speaker in speakers],
        "etiology": np.array(ETIOLOGIES)[speakers % 5], "severity": np.nan, "split": np.where(speakers < 1800, "train", "dev"),
        "duration_s": np.random.default_rng(0).uniform(0.4, 4, n_rows), "language": "en",
        "audio_digest": [f"{number:064x}" for number in range(n_rows)],
    })  # fmt: skip
    write_manifest(folder / "manifest.parquet", table)


def _prepared(folder: Path) -> "Prepared":
    from moe.corpora.manifest import read_manifest
    from steps.inputs.corpus import Prepared

    return Prepared("0", read_manifest(folder / "manifest.parquet"), str(folder), "basic", "basic-1", "en", "", "", "shards")


def decoding(paths: list[str]) -> None:
    """Print × real time of one core for every source, container and way of decoding."""
    speech = [load_audio(path) for path in paths] or [_bursts(20.0)]
    ways: dict[str, Callable[[bytes], np.ndarray]] = {
        "ours (soundfile or PyAV, soxr)": load_audio, "PyAV and swresample": _by_av, "soundfile and SciPy": _by_scipy,
    }  # fmt: skip
    print("| source | container | " + " | ".join(ways) + " |\n| --- | --- |" + " --- |" * len(ways))
    for rate, n_channels in SOURCES:
        for container in CONTAINERS:
            files = [_encode(wave, rate, n_channels, container) for wave in speech]
            seconds = sum(map(len, speech)) / SAMPLE_RATE
            speeds = [_speed(way, files, seconds) for way in ways.values()]
            cells = " | ".join("—" if speed is None else f"{speed:.0f}" for speed in speeds)
            print(f"| {rate} Hz × {n_channels} | {container} | {cells} |")


def _speed(way: Callable[[bytes], np.ndarray], files: list[bytes], seconds: float) -> float | None:
    """× real time, the best of a few turns; None where the way cannot read the container."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        try:
            for data in files:
                way(data)
        except soundfile.SoundFileError:
            return None
        times.append(time.process_time() - start)
    return seconds / min(times)


def _by_av(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data), "r") as file:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        parts = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)] + resampler.resample(None)
        return np.concatenate([part.to_ndarray()[0] for part in parts if part])


def _by_scipy(data: bytes) -> np.ndarray:
    from scipy.signal import resample_poly

    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    ratio = Fraction(SAMPLE_RATE, rate)
    wave = wave.mean(axis=1)
    return wave if ratio == 1 else resample_poly(wave, ratio.numerator, ratio.denominator)


def _encode(wave: np.ndarray, rate: int, n_channels: int, container: str) -> bytes:
    """A 16 kHz waveform as a file of another rate; opus knows 48 kHz instead of 44.1."""
    import soxr

    rate = 48_000 if container == "opus" and rate == 44_100 else rate
    wave = np.clip(soxr.resample(wave, SAMPLE_RATE, rate), -1, 1).astype(np.float32)
    channels = np.stack([wave] * n_channels)
    buffer = io.BytesIO()
    if container != "m4a":
        name, subtype = {"mp3": ("MP3", None), "opus": ("OGG", "OPUS")}.get(container, (container.upper(), "PCM_16"))
        soundfile.write(buffer, channels.T, rate, format=name, subtype=subtype)
        return buffer.getvalue()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=rate, layout="mono" if n_channels == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return buffer.getvalue()


def _bursts(seconds: float) -> np.ndarray:
    """Noise in bursts, so that lossy codecs have something to do."""
    noise = np.random.default_rng(0).standard_normal(int(seconds * 8_000)).astype(np.float32)
    wave = resample(noise, 8_000)
    return 0.1 * wave * (np.sin(np.arange(len(wave)) / 4_000) > 0)


def _write_table(path: Path, n_rows: int) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "transcript", "speaker", "etiology", "gender", "age"])
        for number in range(n_rows):
            speaker = number * 7919 % 2000
            text = f"please (please) call number {number % 400_000} and w- wait"
            writer.writerow(
                [f"wav/{number:07d}.wav", text, f"s{speaker:04d}", ETIOLOGIES[speaker % 5], "fm"[speaker % 2], speaker % 60 + 18]
            )


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:6.1f} s, peak so far {resident_peak_mib() / 2**10:.2f} GiB  {what}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["million"]:
        million(*map(int, sys.argv[2:3]))
    elif sys.argv[1:2] == ["memory"]:
        memory(*map(int, sys.argv[2:3]))
    elif sys.argv[1:2] == ["decoding"]:
        decoding(sys.argv[2:])
    else:
        sys.exit("usage: python -m benchmarks.corpora million [N_ROWS] | memory [N_ROWS] | decoding [FILE …]")
