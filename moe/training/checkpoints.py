"""Checkpoints: the state of an unfinished training as a folder that is whole or absent, checked by digest, read without running code.

    update_00000120_epoch_0003/    state.json   weights.safetensors   optimizer.safetensors …   manifest.json (SHA-256 of the others)

The newest whole one is taken. A damaged one is named, moved aside as `damaged_…` for inspection, and the one before it is tried.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe.files import file_digest, read_json, write_json, write_whole_dir
from moe.options import Options, option
from moe.training import processes

MANIFEST, STATE, TENSORS = "manifest.json", "state.json", ".safetensors"
PREFIX, DAMAGED = "update_", "damaged_"
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(Options):
    """When a training stage saves its state, how much of it stays, and how many bad updates it bears; no result depends on these."""

    save_every_n_epochs: int = option(5, "epochs between checkpoints", low=1)
    save_every_n_updates: int = option(0, "updates between checkpoints within an epoch (0: by time alone)", low=0)
    save_every_minutes: float = option(2.0, "minutes of training after which a checkpoint is due in any case", above=0)
    keep_checkpoints: int = option(2, "newest checkpoints kept, beside that of the best epoch", low=1)
    max_bad_updates: int = option(10, "updates skipped for a loss or gradient that is not finite, before the stage fails", low=0)

    not_in_fingerprint = frozenset(
        {"save_every_n_epochs", "save_every_n_updates", "save_every_minutes", "keep_checkpoints", "max_bad_updates"}
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """State of a training: values that JSON holds, and tensors by file and name."""

    values: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


class TrainingEvents:
    """What happens to a training beside its metrics; a step overrides this, here it goes to the log."""

    def update_begins(self) -> None:
        """Before an update; what it raises ends the training."""

    def report(self, event: str, text: str) -> None:
        """An event (`resumed`, `damaged_checkpoint`, `checkpoint_not_written`, `out_of_memory`, `bad_update`) in words."""
        if processes.number() == 0:  # it is the same in all
            LOG.warning("%s: %s", event, text)

    def damaged(self, path: Path, text: str) -> None:
        """A checkpoint that was found damaged and lies at `path` now."""
        self.report("damaged_checkpoint", text)

    def bad_updates(self, records: Sequence[dict[str, Any]]) -> None:
        """All updates skipped so far, each with update, epoch, loss and utterance_ids."""
        self.report("bad_update", f"update {records[-1]['update']} skipped: {', '.join(records[-1]['utterance_ids'])}")

    def saving(self) -> None:
        """Before a checkpoint is written: what was reported until now must survive, since a resumed training will not report it again."""


class Checkpoints:
    """The checkpoints of one training stage in a folder; without a folder nothing is kept."""

    def __init__(
        self, folder: Path | None = None, options: CheckpointOptions = CheckpointOptions(), events: TrainingEvents | None = None
    ) -> None:
        self.folder, self.options, self.events = folder and Path(folder), options, events or TrainingEvents()

    def below(self, name: str) -> "Checkpoints":
        """Those of one phase of a stage."""
        return Checkpoints(self.folder and self.folder / name, self.options, self.events)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        if self.folder is None:
            return None
        for unfinished in self.folder.glob(f".{PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return next(self._whole(), None)

    def save(self, checkpoint: Checkpoint, update: int, epoch: int, is_best: bool = False) -> None:
        """Write a checkpoint and drop the oldest; a disk that takes nothing is reported and costs no more than this checkpoint."""
        if self.folder is None:
            return
        path = self.folder / f"{PREFIX}{update:08d}_epoch_{epoch:04d}"
        if path.exists():
            return  # where an interruption came before the first update
        try:
            self.events.saving()
            write_checkpoint(path, checkpoint, is_best)
        except (OSError, SafetensorError) as error:
            self.events.report(
                "checkpoint_not_written", f"{path.name} could not be written, the earlier ones stay as they are: {error}"
            )
        else:
            self._drop_old()

    def _whole(self) -> Iterator[Checkpoint]:
        for path in reversed(self._paths()):
            try:
                checkpoint = read_checkpoint(path)
            except DamagedCheckpoint as error:
                aside = _unused(path.with_name(DAMAGED + path.name))
                with contextlib.suppress(OSError):  # where nothing can be moved, nothing else is lost
                    path.rename(aside)
                self.events.damaged(aside, str(error))
            else:
                self.events.report("resumed", f"from checkpoint {path.name}")
                yield checkpoint

    def _drop_old(self) -> None:
        paths = self._paths()
        best = [path for path in paths if _is_best(path)][-1:]
        for path in paths[: -self.options.keep_checkpoints]:
            if path not in best:
                shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob(f"{PREFIX}*"))


def write_checkpoint(path: Path, checkpoint: Checkpoint, is_best: bool = False) -> None:
    """Write a checkpoint as a folder: aside, to the disk, and renamed.

    Raises:
        OSError, SafetensorError: no space, no permission; nothing is left behind.
    """
    with write_whole_dir(path) as aside:
        for name, tensors in checkpoint.tensors.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, aside / f"{name}{TENSORS}")
        (aside / STATE).write_text(json.dumps(checkpoint.values), encoding="utf-8")
        files = {file.name: file_digest(file) for file in sorted(aside.iterdir())}
        write_json(aside / MANIFEST, {"is_best": is_best, "files": files})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint whose every byte is what was written.

    Raises:
        DamagedCheckpoint: naming the checkpoint and the file.
    """
    try:
        files = read_json(path / MANIFEST)["files"]
        found = {file.name for file in path.iterdir()} - {MANIFEST}
        if found != set(files):
            raise DamagedCheckpoint(
                f"checkpoint {path.name} is damaged: {', '.join(sorted(found ^ set(files)))} missing or not its own"
            )
        changed = [name for name in sorted(found) if file_digest(path / name) != files[name]]
        if changed:
            raise DamagedCheckpoint(f"checkpoint {path.name} is damaged: {', '.join(changed)} changed since written")
        stems = [name.removesuffix(TENSORS) for name in found if name.endswith(TENSORS)]
        return Checkpoint(read_json(path / STATE), {stem: _load(path / f"{stem}{TENSORS}") for stem in stems})
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"checkpoint {path.name} is damaged: {type(error).__name__}: {error}") from error


def _load(path: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(path).items()}  # memory of its own, aligned as any other


def _is_best(path: Path) -> bool:
    try:
        return read_json(path / MANIFEST)["is_best"]
    except (OSError, ValueError, KeyError):
        return False  # damaged since: reading it will say so


def _unused(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}_{number}") for number in range(1, 10_000))
    return path if not path.exists() else next(other for other in numbered if not other.exists())
