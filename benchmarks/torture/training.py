"""Torture of single training stages: killed at random moments, killed while saving, and started again on damaged checkpoints."""

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.torture.arena import STAGES, Arena, assert_same, train
from moe import files
from moe.training import checkpoints
from moe.training.checkpoints import DAMAGED, PREFIX, DamagedCheckpoint, read_checkpoint

N_TRIES = 6
INTERVAL = 2  # updates between checkpoints, TOY's save_every_n_updates
DAMAGES = ("truncated", "emptied", "missing", "flipped")
_undisturbed: dict[tuple[str, int], tuple[dict[str, Any], float]] = {}


def undisturbed(arena: Arena, stage: str, n_workers: int) -> tuple[dict[str, Any], float]:
    """What the stage leaves when nothing happens, and the seconds it takes."""
    key = (stage, n_workers)
    if key not in _undisturbed:
        ids = arena.ids()
        started = time.monotonic()
        found = arena.fork(_train, stage, ids, n_workers).value()
        _undisturbed[key] = found, time.monotonic() - started
    return _undisturbed[key]


def killed_at_random(arena: Arena, stage: str, n_workers: int, seed: int) -> str:
    """kill -9 at a random moment, start again: the undisturbed run's weights and metrics, whatever the workers."""
    whole = undisturbed(arena, stage, 0)[0]
    seconds = undisturbed(arena, stage, n_workers)[1]
    n_before = len(_count(arena, whole))
    moment = random.Random(f"{stage}/{n_workers}/{seed}").uniform(0.05, 1.0) * seconds
    for _ in range(N_TRIES):
        child = arena.fork(_train, stage, arena.ids(), n_workers)
        if child.after(moment):
            child.wait()
            if not _had_finished(_count(arena, whole), n_before):
                break
        moment, n_before = 0.7 * moment, n_before + 1
    else:
        raise AssertionError("finished before every kill")
    found = arena.fork(_train, stage, arena.ids(), n_workers).value()
    assert_same(found, whole)
    n_after = len(found["statuses"])
    assert n_after == n_before + 1, f"{n_after - n_before} runs instead of one"
    return f"killed after {moment:.1f} of {seconds:.1f} s, starts {found['tags'].get('moe.n_starts', '1')}"


def killed_while_saving(arena: Arena, seed: int) -> str:
    """kill -9 at a random file operation of a save: resumed from the newest whole checkpoint, at most one interval lost."""
    whole = undisturbed(arena, "experts", 0)[0]
    child = arena.fork(_train_and_die_saving, arena.ids(), random.Random(seed).randint(1, 60))
    child.wait()
    assert child.status is not None and os.WIFSIGNALED(child.status), f"not killed: {child.said()[-800:]}"
    folder = _checkpoints(arena)
    died_at, *_ = map(int, re.findall(r"dies while writing update (\d+)", child.said()))
    newest = _newest_whole(folder)
    found = arena.fork(_train, "experts", arena.ids(), 0).value()
    assert_same(found, whole)
    resumed = found["tags"].get("moe.resumed", "")
    if newest is None:
        assert died_at <= INTERVAL, f"no whole checkpoint at update {died_at}"
        return "killed in the first save, started afresh"
    assert newest in resumed, f"{newest} was whole, but resumed {resumed!r}"
    lost = died_at - int(newest.split("_")[1])
    assert lost <= INTERVAL, f"{lost} updates lost"
    return f"killed writing update {died_at}, resumed at {died_at - lost}"


def damaged(arena: Arena, seed: int) -> str:
    """The newest checkpoint is damaged: named, kept, and the one before it taken."""
    how = DAMAGES[seed % len(DAMAGES)]
    whole = undisturbed(arena, "experts", 0)[0]
    child = arena.fork(_train_and_die_after_saves, arena.ids(), 3)
    child.wait()
    newest = max(_checkpoints(arena).glob(f"{PREFIX}*"))
    damage(newest, how)
    found = arena.fork(_train, "experts", arena.ids(), 0).value()
    assert_same(found, whole)
    tags = found["tags"]
    assert newest.name in tags.get("moe.damaged_checkpoint", ""), f"{newest.name} is not named: {tags}"
    assert newest.name not in tags["moe.resumed"] and PREFIX in tags["moe.resumed"]
    kept = list(arena.unfinished.glob(f"damaged/*/{DAMAGED}{newest.name}"))
    assert kept, f"{newest.name} was not kept for inspection"
    return f"{how}: {tags['moe.damaged_checkpoint'][:80]}"


def damage(folder: Path, how: str) -> None:
    """Damage the weights of a checkpoint."""
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    content[-3] ^= 1
    damaged = {"truncated": content[: len(content) // 2], "emptied": bytearray(), "flipped": content}
    path.write_bytes(damaged[how])


def same_again(arena: Arena, seed: int) -> str:
    """The same seed twice and with two workers, each in a process of its own."""
    stage = list(STAGES)[seed]
    whole = undisturbed(arena, stage, 0)[0]
    for n_workers in (0, 2):
        found = arena.fork(_train, stage, arena.ids(), n_workers).value()
        assert_same(found, whole)
        assert found["run_id"] != whole["run_id"]
    return f"{stage}: {len(whole['weights'])} files, {len(whole['metrics'])} metrics"


def _train(stage: str, ids: dict[str, str], n_workers: int) -> dict[str, Any]:
    return train(stage, ids, **({} if stage == "gate" else {"num_workers": n_workers}))


def _had_finished(statuses: list[str], n_before: int) -> bool:
    """Whether the killed process had marked its run already: a step is not started again then, but reused."""
    return len(statuses) > n_before and set(statuses) == {"FINISHED"}


def _count(arena: Arena, whole: dict[str, Any]) -> list[str]:
    return arena.fork(_statuses, whole["run_id"]).value()


def _statuses(run_id: str) -> list[str]:
    from benchmarks.torture.arena import outcome

    return outcome(run_id)["statuses"]


def _checkpoints(arena: Arena) -> Path:
    found = [path for path in arena.unfinished.glob("experts-*/work/*") if any(path.glob(f"*{PREFIX}*"))]
    return max(found, key=lambda path: path.stat().st_mtime) if found else arena.unfinished / "none"


def _newest_whole(folder: Path) -> str | None:
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            read_checkpoint(path)
        except DamagedCheckpoint:
            continue
        return path.name
    return None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _train_and_die_saving(ids: dict[str, str], n_operations: int) -> None:
    """Die before the n-th operation on files that saving checkpoints does, counted over all saves."""
    left, writing, write = [n_operations], [""], checkpoints.write_checkpoint

    def counted(function):
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= bool(writing[0])
            if left[0] <= 0 and writing[0]:
                print(f"dies while writing update {int(writing[0].split('_')[1])}", flush=True)
                _die()
            return function(*arguments, **options)

        return call

    def watched(path: Path, *arguments: Any, **options: Any) -> None:
        writing[0] = path.name
        write(path, *arguments, **options)
        writing[0] = ""

    checkpoints.write_checkpoint = watched
    checkpoints.save_file, checkpoints.file_digest = counted(checkpoints.save_file), counted(checkpoints.file_digest)
    files.os.fsync, files.os.replace = counted(os.fsync), counted(os.replace)
    _train("experts", ids, 0)


def _train_and_die_after_saves(ids: dict[str, str], n_saves: int) -> None:
    write, done = checkpoints.write_checkpoint, []

    def counted(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        done.append(1)
        if len(done) == n_saves:
            _die()

    checkpoints.write_checkpoint = counted
    _train("experts", ids, 0)
