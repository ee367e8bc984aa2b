"""What `benchmarks.speed` times and weighs of embeddings: from recordings on disk to a store of vectors.

Unlike the rest it reads a manifest, which needs pandas, pyarrow, soundfile and what reads audio.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile
from transformers import WhisperProcessor

from benchmarks.speed.reference_way import embed_one_by_one
from benchmarks.speed.variants import ONE_BY_ONE, OURS_LAST, OURS_LAST_HALF, OURS_STEM, POOLED, POOLED_LARGE
from benchmarks.speed.workbench import SAMPLE_RATE, Shape, Workbench
from benchmarks.timing import Variants, alternate
from moe.audio.waveforms import load_audio
from moe.routing.embeddings import embed
from moe.routing.options import RoutingOptions
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import train_tokenizer
from moe.training.dataset import SpeechDataset

LARGE_WIDTH = Shape(1280, 1, 20, n_tokens=64)  # a vector of large-v2 costs the same, whatever the number of layers


def times(bench: Workbench, repeats: int) -> dict[str, list[float]]:
    """Seconds to embed the same files in each way."""
    with tempfile.TemporaryDirectory() as folder:
        return alternate(embedding_variants(bench, Path(folder)), repeats, bench.device)


def embedding_variants(bench: Workbench, folder: Path) -> Variants:
    """Short utterances from their files to vectors on disk; `folder` receives the audio and the stores."""
    model, manifest = bench.base().eval(), _corpus(bench, folder, bench.workload.n_embedded)

    def ours(layer: int | None, dtype: str | None = None) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            _embed(bench, model, manifest, folder, Path(store), layer, dtype or bench.dtype)

    def one_by_one() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            waves = (load_audio(folder / name) for name in manifest["audio"])
            embed_one_by_one(model, bench.extractor, waves, Path(store), bench.precision)

    variants = {ONE_BY_ONE: one_by_one, OURS_LAST: lambda: ours(None), OURS_STEM: lambda: ours(RoutingOptions().layer)}
    return variants if bench.dtype == "bf16" else variants | {OURS_LAST_HALF: lambda: ours(None, "bf16")}


def store_sizes(bench: Workbench) -> dict[str, list[float]]:
    """KiB on disk per utterance: ours at the bench's width and at large-v2's, and every frame kept."""
    return {
        POOLED: [_store_size(bench)],
        POOLED_LARGE: [_store_size(_large(bench))],
        ONE_BY_ONE: [_frames_size(bench)],
    }


def _corpus(bench: Workbench, folder: Path, n_utterances: int) -> pd.DataFrame:
    rows = []
    for number in range(n_utterances):
        soundfile.write(folder / f"{number}.wav", bench.wave(number), SAMPLE_RATE, subtype="PCM_16")
        rows.append({"utterance_id": f"u{number}", "audio": f"{number}.wav", "member": None, "reference": "a"})
    return pd.DataFrame(rows).assign(duration_s=bench.workload.short_s)


def _embed(
    bench: Workbench, model: Any, manifest: pd.DataFrame, root: Path, store: Path, layer: int | None, dtype: str = "fp32"
) -> None:
    processor = WhisperProcessor(bench.extractor, train_tokenizer(["a"], "characters", 0, "en"))
    dataset = SpeechDataset(manifest, root, WhisperInputs(processor, AudioContextOptions()))
    batch_size = (
        bench.workload.batch_size * (2 if bench.device == "cuda" else 1) // 2
    )  # on a CPU few utterances stay in its cache
    embed(embedder(model, layer, RoutingOptions().pooling, dtype), dataset, store, batch_size)


def _store_size(bench: Workbench) -> float:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as store:
        manifest = _corpus(bench, Path(folder), bench.workload.n_stored)
        _embed(bench, bench.base().eval(), manifest, Path(folder), Path(store), RoutingOptions().layer)
        return _kib(Path(store)) / bench.workload.n_stored


def _frames_size(bench: Workbench) -> float:
    with tempfile.TemporaryDirectory() as store:
        embed_one_by_one(bench.base().eval(), bench.extractor, [bench.wave(0)], Path(store))
        return _kib(Path(store))


def _large(bench: Workbench) -> Workbench:
    return Workbench(dataclasses.replace(LARGE_WIDTH, window_s=bench.shape.window_s), bench.workload, bench.device)


def _kib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1024
