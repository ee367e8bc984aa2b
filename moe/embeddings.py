"""Pooled embeddings of a corpus: one store, a few kilobytes per utterance, written in parts so that an interrupted run goes on.

The store is a folder: `part_*.safetensors` while it grows, then `embeddings.safetensors` (N, D) beside `index.parquet`, which maps each
utterance id to its row.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from moe.batches import SpeechDataset, collator, length_batches, to_device
from moe.encoder import pooled_embedding
from moe.features import AudioContext
from moe.files import write_table, write_whole

MATRIX, INDEX = "embeddings.safetensors", "index.parquet"
PART_BATCHES = 16  # batches between two saves


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Vectors (N, D) float32 and the utterance each belongs to."""

    utterance_ids: tuple[str, ...]
    vectors: np.ndarray

    def select(self, utterance_ids: Sequence[str]) -> np.ndarray:
        """Vectors of these utterances, in this order, (n, D).

        Raises:
            ValueError: an utterance has no embedding; missing ones are computed, never skipped.
        """
        row = {name: number for number, name in enumerate(self.utterance_ids)}
        missing = [name for name in utterance_ids if name not in row]
        if missing:
            raise ValueError(f"{len(missing)} utterances have no embedding, e.g. {missing[:3]}; run embed on this manifest again")
        return self.vectors[[row[name] for name in utterance_ids]]


def read_embeddings(folder: Path) -> Embeddings:
    """A finished store."""
    index = pd.read_parquet(Path(folder) / INDEX)
    return Embeddings(tuple(index.utterance_id), load_file(Path(folder) / MATRIX)["embeddings"])


def embed(
    base: WhisperForConditionalGeneration,
    dataset: SpeechDataset,
    folder: Path,
    context: AudioContext,
    layer: int | None,
    pooling: str,
    batch_size: int,
) -> Embeddings:
    """Embed a dataset into a store; parts that an earlier call left in `folder` are kept and not computed again."""
    done = _read_parts(folder)
    todo = np.array([number for number, row in enumerate(dataset.rows) if row["utterance_id"] not in done], int)
    batches = [todo[batch] for batch in length_batches(dataset.durations[todo], batch_size)]
    with tqdm(total=len(dataset), initial=len(done), desc="embed", unit="utterance") as bar:
        for first in range(0, len(batches), PART_BATCHES):
            part = _embed_batches(base, dataset, batches[first : first + PART_BATCHES], context, layer, pooling, bar)
            _write_part(folder, part)
            done |= part
    return _finish(folder, [row["utterance_id"] for row in dataset.rows], done)


@torch.inference_mode()
def _embed_batches(
    base: WhisperForConditionalGeneration,
    dataset: SpeechDataset,
    batches: Sequence[np.ndarray],
    context: AudioContext,
    layer: int | None,
    pooling: str,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    base.eval()
    collate, vectors = collator(dataset.processor, context), {}
    for indices in batches:
        batch = to_device(collate([dataset[int(index)] for index in indices]), base.device)
        pooled = pooled_embedding(base.model.encoder, batch["mel"], batch["n_frames"], layer, pooling)  # (B, D)
        vectors |= dict(zip(batch["utterance_ids"], pooled.float().cpu().numpy(), strict=True))
        bar.update(len(indices))
    return vectors


def _write_part(folder: Path, part: dict[str, np.ndarray]) -> None:
    numbers = [int(path.stem.rpartition("_")[2]) for path in folder.glob("part_*.safetensors")]
    number = max(numbers, default=-1) + 1  # not the count: a part that was cut off and removed leaves a gap
    with write_whole(folder / f"part_{number:05d}.safetensors") as aside:
        save_file(part, aside)


def _read_parts(folder: Path) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    for path in sorted(Path(folder).glob("part_*.safetensors")):
        try:
            vectors |= load_file(path)
        except SafetensorError:
            path.unlink()  # cut off by a kill: its utterances are computed again
    return vectors


def _finish(folder: Path, utterance_ids: Sequence[str], vectors: dict[str, np.ndarray]) -> Embeddings:
    matrix = np.stack([vectors[name] for name in utterance_ids]).astype(np.float32)
    with write_whole(folder / MATRIX) as aside:
        save_file({"embeddings": matrix}, aside)
    write_table(folder / INDEX, pd.DataFrame({"utterance_id": list(utterance_ids), "row": np.arange(len(utterance_ids))}))
    for path in folder.glob("part_*.safetensors"):
        path.unlink()
    return Embeddings(tuple(utterance_ids), matrix)
