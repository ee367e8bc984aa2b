"""Manifest rows as model inputs: what `Inputs` makes of each utterance, cached without padding."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from moe.audio.augmentation import AugmentationOptions, augment_waveform, generator
from moe.audio.sampling import SAMPLE_RATE
from moe.corpora.locations import Root
from moe.corpora.manifest import read_utterance
from moe.corpora.presence import in_shards
from moe.corpora.rows import Rows
from moe.system import Batch, Inputs
from moe.training.batches import Draw
from moe.training.example_memory import ExampleMemory, shared_memory
from moe.training.threads import one_thread

Kept = TypeVar("Kept", np.ndarray, Batch)


class SpeechDataset(Dataset):
    """Utterances of a manifest as model inputs.

    Args:
        manifest: rows to serve.
        root: the corpus root that the manifest's paths start from.
        inputs: makes an example of a waveform and its reference.
        augmentation: None serves every utterance as it is.
        seed: of the augmentation.
        extras: further per-utterance arrays to serve, each (N, …) in the manifest's order, e.g. embeddings, routing weights.
        trains: whether the utterances are trained on, and so must be such that the model can learn them.
        memory: for unpadded examples and waveforms; past it they are made again. None: what all data sets of this process share.
        shards_together: shards whose utterances come together where the data set is embedded or decoded; None: all.

    Raises:
        ValueError: utterances longer than the model's window, by id, before anything is read; utterances that cannot be learnt.
    """

    def __init__(
        self,
        manifest: pd.DataFrame,
        root: Root,
        inputs: Inputs,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
        extras: Mapping[str, np.ndarray] | None = None,
        trains: bool = False,
        memory: ExampleMemory | None = None,
        shards_together: int | None = None,
    ) -> None:
        self._cached_bytes, self.memory = 0, memory or shared_memory()
        self.rows = Rows(manifest)
        # how often the utterance of a row came before: each row of it is drawn anew, (N,)
        self._n_before = manifest.groupby("utterance_id").cumcount().to_numpy()
        self.root, self.inputs, self.augmentation, self.seed = root, inputs, augmentation, seed
        self.shards_together = shards_together
        self.extras = {name: torch.as_tensor(array) for name, array in (extras or {}).items()}
        self._examples: dict[int, Batch] = {}
        self._waveforms: dict[int, np.ndarray] = {}
        if faults := self._too_long() + (self._unlearnable() if trains else []):
            raise ValueError("; ".join(faults))

    def __len__(self) -> int:
        return len(self.rows)

    @one_thread()
    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(draw, 0)
        extras = {name: values[draw.index] for name, values in self.extras.items()}
        return {"utterance_id": self.rows[draw.index]["utterance_id"], **self._augmented(draw), **extras}

    def example(self, index: int) -> Batch:
        """An utterance as it is, unpadded, from the cache where it is."""
        reference = self.rows[index]["reference"]
        return self._kept(self._examples, index, lambda: self.inputs.example(self.waveform(index), reference))

    def waveform(self, index: int) -> np.ndarray:
        """Samples of an utterance, float32 (n_samples,) at 16 kHz."""
        return read_utterance(self.root, self.rows[index])

    def is_kept(self, index: int) -> bool:
        """Whether an utterance is in memory, so that nothing of it is read any more."""
        by_waveform = self.augmentation is not None and self.augmentation.changes_waveform
        return index in (self._waveforms if by_waveform else self._examples)

    def forget(self) -> None:
        """Drop the waveforms and features that are kept, so that what comes next pays for its own."""
        self.memory.give_back(self._cached_bytes)
        self._examples, self._waveforms, self._cached_bytes = {}, {}, 0

    def __del__(self) -> None:
        self.memory.give_back(self._cached_bytes)

    @property
    def utterance_ids(self) -> list[str]:
        """Ids of the utterances, (N,)."""
        return self.rows.column("utterance_id")

    @property
    def references(self) -> list[str]:
        """What was said, normalised, (N,)."""
        return self.rows.column("reference")

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each utterance, (N,)."""
        return np.array(self.rows.column("duration_s"))

    @property
    def shards(self) -> np.ndarray | None:
        """Number of the shard that each utterance lies in, (N,); None where a recording is a file of its own."""
        return shards_of(self.rows.table)

    @property
    def turns(self) -> np.ndarray | None:
        """Number of the group of shards that each utterance lies in, (N,), by the shards' names; None where all come together."""
        if self.shards_together is None or self.shards is None:
            return None
        return pd.factorize(self.rows.table["audio"], sort=True)[0] // self.shards_together

    def _augmented(self, draw: Draw) -> Batch:
        """The example of an utterance as an epoch's augmentation makes it."""
        row, options = self.rows[draw.index], self.augmentation
        if options is None:
            return self.example(draw.index)
        random = generator(self.seed, draw.epoch, row["utterance_id"], int(self._n_before[draw.index]))
        if not options.changes_waveform:
            return self.inputs.augment(self.example(draw.index), options, random)
        original = self._kept(self._waveforms, draw.index, lambda: self.waveform(draw.index))
        waveform = augment_waveform(original, options, random, self._longest(len(original)))
        return self.inputs.augment(self.inputs.example(waveform, row["reference"]), options, random)

    def _longest(self, n_samples: int) -> int:
        """Samples that an utterance may grow to: the model's window, or twice its own length where there is none."""
        window_s = self.inputs.window_s
        return 2 * n_samples if window_s is None else round(window_s * SAMPLE_RATE)

    def _kept(self, cache: dict[int, Kept], index: int, make: Callable[[], Kept]) -> Kept:
        if index in cache:
            return cache[index]
        made = make()
        if self.memory.take(n_bytes := bytes_of(made)):
            cache[index] = made
            self._cached_bytes += n_bytes
        return made

    def _too_long(self) -> list[str]:
        window = self.inputs.window_s
        if window is None or not (beyond := self.durations > window).any():
            return []
        too_long = self.rows.take(np.flatnonzero(beyond)).column("utterance_id")
        return [
            f"{len(too_long)} utterances are longer than the base model's window of {window:g} s, e.g. {too_long[:3]}; "
            f"prepare the corpus with max_duration_s={window:g}"
        ]

    def _unlearnable(self) -> list[str]:
        refused: dict[str, list[str]] = {}
        for row in _read_for_reasons(self.rows, self.inputs):
            reason = _reason(row, self.inputs)
            if reason:
                refused.setdefault(reason, []).append(row["utterance_id"])
        said = [f"{len(ids)} utterances {reason}, e.g. {ids[:3]}" for reason, ids in refused.items()]
        return [f"these cannot be trained on: {'; '.join(said)}"] if said else []


def shards_of(table: pd.DataFrame) -> np.ndarray | None:
    """Number of the shard that each row of a manifest lies in, (N,); None where a recording is a file of its own."""
    if "member" not in table or not in_shards(table).all():
        return None
    return pd.factorize(table["audio"])[0]


def bytes_of(kept: np.ndarray | Batch) -> int:
    """Bytes of a waveform, (n_samples,), or of the arrays of an example."""
    return sum(part.nbytes for part in (kept.values() if isinstance(kept, dict) else [kept]) if isinstance(part, np.ndarray))


def refused(rows: pd.DataFrame, inputs: Inputs) -> pd.DataFrame:
    """Those rows that a system cannot be trained on, as a table: utterance_id, duration_s, reference, reason."""
    window = inputs.window_s
    reasons = [
        f"are longer than the window of {window:g} s"
        if window is not None and row["duration_s"] > window
        else _reason(row, inputs)
        for row in _read_for_reasons(Rows(rows), inputs)
    ]
    table = rows[["utterance_id", "duration_s", "reference"]].assign(reason=reasons)
    return table[[reason is not None for reason in reasons]].reset_index(drop=True)


def _read_for_reasons(rows: Rows, inputs: Inputs) -> Rows:
    """What `_reason` reads of each row, and its id."""
    return rows.only(["utterance_id", "duration_s", "reference", *getattr(inputs, "own_columns", ())])


def _reason(row: Mapping[Any, Any], inputs: Inputs) -> str | None:
    """Why an utterance cannot be trained on; of its columns also those count that the inputs name in `own_columns`."""
    own = {name: row[name] for name in getattr(inputs, "own_columns", ()) if isinstance(row.get(name), str) and row[name]}
    return inputs.refusal(round(row["duration_s"] * SAMPLE_RATE), row["reference"], **own)
