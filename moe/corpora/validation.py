"""Every recording of a corpus decoded once, on all cores, before any other work starts.

Small corpora are decoded in this process; larger ones in spawned workers, a chunk of neighbouring utterances at a time, so that a
shard is read from front to back. A decoder that kills its worker costs that one utterance, not the run.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import joblib
import pandas as pd

from moe.corpora.locations import Root
from moe.corpora.quarantine import Inspected, inspect_audio
from moe.progress import progress

IN_PROCESS = 2000  # fewer utterances than this are decoded sooner than workers start
CHUNK = 200

Task = tuple[str, str | None]  # audio, member
Limits = tuple[float, float] | tuple[float, float, str]  # as `inspect_audio` takes them


def inspect_all(root: Root, tasks: Sequence[Task], limits: Limits, n_workers: int = 0) -> list[Inspected]:
    """Decode and judge every task, in the order given.

    Args:
        tasks: audio and member of every utterance.
        limits: shortest and longest allowed duration in seconds, and which of several channels is taken.
        n_workers: processes; 0 is one per core. Fewer than `IN_PROCESS` tasks need none.
    """
    chunks = [(start, tasks[start : start + CHUNK]) for start in range(0, len(tasks), CHUNK)]
    n_workers = n_workers or joblib.cpu_count()
    found: dict[int, list[Inspected]] = {}
    with progress("check audio", len(tasks), "utterances") as bar:
        done = (
            _in_process(root, chunks, limits)
            if len(tasks) < IN_PROCESS or n_workers == 1
            else _in_workers(root, chunks, limits, n_workers)
        )
        for start, inspected in done:
            found[start] = inspected
            bar.update(len(inspected))
    return [each for start in sorted(found) for each in found[start]]


def as_columns(inspected: list[Inspected], index: pd.Index) -> pd.DataFrame:
    """duration_s, audio_digest, reason, detail, channel, one row per result."""
    return pd.DataFrame(
        {
            "duration_s": pd.array([item.duration_s for item in inspected], dtype="float64"),
            **{
                name: pd.array([getattr(item, name) for item in inspected], dtype="str")
                for name in ("audio_digest", "reason", "detail", "channel")
            },
        },
        index=index,
    )


def inspect_chunk(root: Root, tasks: Sequence[Task], limits: Limits) -> list[Inspected]:
    """One worker's share of the tasks."""
    return [inspect_audio(root, audio, member, *limits) for audio, member in tasks]


Chunk = tuple[int, Sequence[Task]]


def _in_process(root: Root, chunks: list[Chunk], limits: Limits) -> Iterator[tuple[int, list[Inspected]]]:
    for start, tasks in chunks:
        yield start, inspect_chunk(root, tasks, limits)


def _in_workers(root: Root, chunks: list[Chunk], limits: Limits, n_workers: int) -> Iterator[tuple[int, list[Inspected]]]:
    waiting, broken = list(reversed(chunks)), list[Chunk]()
    while waiting:
        pool = ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn"))
        running: dict[Future, Chunk] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * n_workers:
                    chunk = waiting.pop()
                    running[pool.submit(inspect_chunk, root, chunk[1], limits)] = chunk
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future)[0], result
        except BrokenProcessPool:
            broken += running.values()  # one of these killed its worker
        finally:
            pool.shutdown(cancel_futures=True)
    for start, tasks in broken:
        yield start, [_alone(root, task, limits) for task in tasks]


def _alone(root: Root, task: Task, limits: Limits) -> Inspected:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(inspect_chunk, root, [task], limits).result()[0]
        except BrokenProcessPool:
            return Inspected(reason="unreadable", detail="the decoder crashed")
