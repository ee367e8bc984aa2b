"""A folder that keeps batches of hypotheses, so that a killed decoding goes on where it was."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moe.files import read_json, write_json
from moe.system import Hypothesis

ARRAYS = ("routing_weights", "gate_probabilities")


class BatchStore:
    """Batches of hypotheses in a folder, each a file that is whole or absent; None keeps nothing.

    `seconds` (see `moe.training.cost.compute_clock`) and `n_read` grow with every batch that is read or written: what all of it took,
    whoever did it, and how much was there already.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.seconds, self.n_read = folder, 0.0, 0

    def read(self, number: int, utterance_ids: Sequence[str], routings: Sequence[str]) -> dict[str, list[Hypothesis]] | None:
        """A batch as an earlier call wrote it; None where it is absent, unreadable or of other utterances."""
        path = self._path(number)
        if path is None or not path.exists():
            return None
        try:
            kept = read_json(path)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None  # damaged: it is decoded and written again
        if kept["utterance_ids"] != list(utterance_ids) or list(kept["routings"]) != list(routings):
            return None
        self.seconds += kept["seconds"]
        self.n_read += 1
        return {name: [_from_row(row) for row in rows] for name, rows in kept["routings"].items()}

    def has(self, number: int) -> bool:
        """Whether an earlier call left a batch here."""
        path = self._path(number)
        return path is not None and path.exists()

    def write(self, number: int, batch: Mapping[str, Sequence[Hypothesis]], seconds: float) -> None:
        """Keep a batch."""
        self.seconds += seconds
        path = self._path(number)
        if path is None:
            return
        ids = [hypothesis.utterance_id for hypothesis in next(iter(batch.values()))]
        routings = {name: [_as_row(hypothesis) for hypothesis in part] for name, part in batch.items()}
        write_json(path, {"utterance_ids": ids, "seconds": seconds, "routings": routings})

    def _path(self, number: int) -> Path | None:
        return None if self.folder is None else Path(self.folder) / f"batch_{number:06d}.json"


def _as_row(hypothesis: Hypothesis) -> list:
    """JSON keeps doubles exactly, and a float32 is one."""
    values = [getattr(hypothesis, name) for name in _names()]
    return [[float(number) for number in value] if isinstance(value, np.ndarray) else value for value in values]


def _from_row(row: Sequence) -> Hypothesis:
    values = dict(zip(_names(), row, strict=True))
    arrays = {name: np.array(values[name], np.float32) for name in ARRAYS if values[name] is not None}
    return Hypothesis(**values | arrays)


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Hypothesis)]
