"""Pooled embeddings of a corpus: one store, a few kilobytes per utterance, written in parts so that an interrupted run goes on.

An utterance's vector depends on the utterance alone, but for rounding: a batch holds one length bucket, so that padding is the same, and
`moe.routing.pooling.pool` rounds to the half precision that is stored. Kernels differ by batch size (torch convolves one short utterance
in another way than several): between a batch of one and one of 32, fewer than one value in a thousand falls on the next half-precision
number. A set is embedded in the same batches in any order, to the same bits. The store is a folder: `part_*.safetensors` while it
grows, then `embeddings.safetensors` (N, D) beside `index.parquet`, which maps each utterance id to its row.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from moe.corpora.tables import write_table
from moe.files import file_digest, read_json, write_json, write_whole
from moe.progress import progress
from moe.system import Batch
from moe.training import blocks, processes
from moe.training.batches import Examples, collate, length_batches
from moe.training.read_ahead import fetched_ahead

MATRIX, INDEX = "embeddings.safetensors", "index.parquet"
STORED = np.float16  # which `pool` rounds to
PART_BATCHES = 4  # batches of a part, which one process embeds and saves
DIGEST = ".json"  # beside each part: the digest of its bytes
Embedder = Callable[[Batch], Tensor]  # a batch → (B, D)
LOG = logging.getLogger(__name__)


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


def speaker_means(vectors: np.ndarray, speakers: Sequence[str]) -> np.ndarray:
    """Each utterance's vector replaced by its speaker's profile, the mean over the speaker's utterances: (N, D) → (N, D)."""
    names, owner = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, owner, vectors)
    return (sums / np.bincount(owner)[:, None])[owner].astype(vectors.dtype)


def read_embeddings(folder: Path) -> Embeddings:
    """A finished store."""
    index = pd.read_parquet(Path(folder) / INDEX)
    return Embeddings(tuple(index.utterance_id), load_file(Path(folder) / MATRIX)["embeddings"].astype(np.float32))


def embed(embedder: Embedder, dataset: Examples, folder: Path, batch_size: int) -> Embeddings:
    """Embed a dataset into a store; parts that an earlier call left in `folder` are kept and not computed again.

    Batches are those of the whole dataset, whatever is done already: their size shows in an utterance's last bits. Of several processes
    each embeds the parts dealt to it, the first writes the store, and all get all vectors.

    Args:
        embedder: a batch as the dataset's inputs make it → (B, D), what the gate reads.

    Raises:
        RuntimeError: utterances that failed twice.
    """
    done, ids = _read_parts(folder), dataset.utterance_ids
    processes.gathered(None)  # a part that another process is writing would be read as damaged
    batches = length_batches(dataset, batch_size)
    parts = [batches[first : first + PART_BATCHES] for first in range(0, len(batches), PART_BATCHES)]
    own = {number: [ids[index] for batch in parts[number] for index in batch] for number in blocks.dealt(len(parts))}
    left, made = {number: names for number, names in own.items() if not done.keys() >= set(names)}, dict[str, np.ndarray]()
    n_own, n_left = (sum(map(len, each.values())) for each in (own, left))
    order = {number: place for place, number in enumerate(left)}
    read = [np.concatenate(parts[number]) for number in left]
    with progress("embed", n_own, "utterances", n_own - n_left) as bar, fetched_ahead(dataset, read) as reached:

        def do(number: int) -> None:
            reached(order[number])
            part = _embed_batches(embedder, dataset, parts[number])
            _write_part(folder, number, part)
            made.update(part)
            bar.update(len(part))

        blocks.do_each(left, do, folder)
    for share in processes.gathered(made):
        done |= share
    return _finish(folder, ids, done)


def _embed_batches(embedder: Embedder, dataset: Examples, batches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    for indices in batches:
        batch = collate(dataset, [dataset[int(index)] for index in indices])
        pooled = embedder(batch).cpu().numpy().astype(STORED)  # (B, D)
        vectors |= dict(zip(batch["utterance_ids"], pooled, strict=True))
    return vectors


def _write_part(folder: Path, number: int, part: dict[str, np.ndarray]) -> None:
    path = folder / f"part_{number:05d}.safetensors"
    with write_whole(path) as aside:
        save_file(part, aside)
        digest = file_digest(aside)
    write_json(path.with_suffix(DIGEST), digest)


def _read_parts(folder: Path) -> dict[str, np.ndarray]:
    """Vectors of all parts that are what was written; the utterances of another are computed again."""
    vectors: dict[str, np.ndarray] = {}
    for path in sorted(Path(folder).glob("part_*.safetensors")):
        try:
            if read_json(path.with_suffix(DIGEST)) != file_digest(path):
                raise ValueError("changed since written")
            vectors |= load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            LOG.warning("embeddings %s are damaged and computed again: %s", path.name, error)
            path.unlink(missing_ok=True)
    return vectors


def _finish(folder: Path, utterance_ids: Sequence[str], vectors: dict[str, np.ndarray]) -> Embeddings:
    matrix = np.stack([vectors[name] for name in utterance_ids])
    found = Embeddings(tuple(utterance_ids), matrix.astype(np.float32))
    if processes.number():
        return found
    with write_whole(folder / MATRIX) as aside:
        save_file({"embeddings": matrix}, aside)
    write_table(folder / INDEX, pd.DataFrame({"utterance_id": list(utterance_ids), "row": np.arange(len(utterance_ids))}))
    for path in [*folder.glob("part_*"), *folder.glob(f"{blocks.MARK}*")]:
        path.unlink()
    return found


def read_by_gate(gate_unit: str, rows: pd.DataFrame, embeddings: Embeddings) -> np.ndarray:
    """What the gate reads of each row, (N, D): the utterance's own embedding, or with `gate_unit` speaker the mean of its speaker's."""
    vectors = embeddings.select(rows["utterance_id"])
    return speaker_means(vectors, rows["speaker"]) if gate_unit == "speaker" else vectors
