"""Checkpoints of a toy training: written, listed and damaged; events that are written down; trainings that are killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from moe.training import loop
from moe.training.checkpoints import PREFIX, Checkpoint, CheckpointOptions, Checkpoints, TrainingEvents


class Killed(BaseException):
    """As if the process had gone."""


@contextmanager
def killed_after(n_updates: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the block a training is killed in the step after so many."""
    real, seen = loop.SpeechTrainer.training_step, []

    def step(*arguments, **named):
        seen.append(0)
        if len(seen) > n_updates:
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.SpeechTrainer, "training_step", step)
        yield


class Recorded(TrainingEvents):
    """Events that are written down."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, str]] = []

    def report(self, event: str, text: str) -> None:
        self.reported.append((event, text))

    def of(self, event: str) -> list[str]:
        """The texts of one kind of event."""
        return [text for name, text in self.reported if name == event]


def state(number: int) -> Checkpoint:
    """A checkpoint whose tensors hold its number."""
    weights = {"a": torch.full((3, 2), float(number)), "n": torch.tensor(number)}
    return Checkpoint({"update": number, "best": float("inf"), "rate": 0.1 + 0.2}, {"weights": weights, "stage": {}})


def kept(folder: Path, **options) -> Checkpoints:
    """The checkpoints of a folder, with events that are written down."""
    return Checkpoints(folder, CheckpointOptions(**options), Recorded())


def names(folder: Path, prefix: str = PREFIX) -> list[str]:
    """Names of the checkpoints in a folder, the oldest first."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(prefix))


def filled(folder: Path, n: int = 3) -> Checkpoints:
    """A folder with the checkpoints 1 to n."""
    found = kept(folder, keep_checkpoints=n)
    for number in range(1, n + 1):
        found.save(state(number), number, 0)
    return found


def damage(path: Path, how: str) -> None:
    """Damage a checkpoint; `how` is a kind of damage or what its manifest is to hold."""
    file = path / "weights.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "missing":
        file.unlink()
    elif how == "flipped":
        raw = bytearray(file.read_bytes())
        raw[-3] ^= 1
        file.write_bytes(raw)
    elif how == "added":
        (path / "more.safetensors").write_bytes(b"")
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text(how)
