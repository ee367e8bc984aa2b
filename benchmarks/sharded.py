"""What a second process saves, one thread each: embedding and decoding the same recordings, two processes against one, in turn.

    python -m benchmarks.sharded [--base FOLDER] [--n_utterances 512] [--repeats 3] [--shape demo|tiny]

Wall time, which says something only where two cores are idle: from when every process has the model until each has all results. Starting
a process is not in it. The recordings are noise of 1.5 to 4 s; the model is BASE, or a new one of whisper-tiny's shape.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import transformers

from benchmarks.forked import fork
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import Claim, figure, record, write
from benchmarks.timing import machine, one_thread
from benchmarks.voice_activity import TINY, TINY_TOKENS_PER_S
from moe.audio.sampling import SAMPLE_RATE
from moe.files import read_json, write_json
from moe.recognition.decoding import decode
from moe.recognition.hypothesis_store import BatchStore
from moe.routing.embeddings import embed
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import BaseModel, load_base, new_base
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper_moe.system import WhisperSystem
from moe.systems.whisper_moe.zero_shot import base_system
from moe.training import processes
from moe.training.dataset import SpeechDataset
from steps.pretrain import SHIPPED

ONE, TWO = "one process", "two processes"
SHORTEST_S, LONGEST_S = 1.5, 4.0  # the window of the shipped base
LEAST = 1.7  # times the throughput of one
Work = Callable[[Path], bytes]


def write_corpus(folder: Path, n_utterances: int) -> pd.DataFrame:
    """Noise as wav; the manifest."""
    random, rows = np.random.default_rng(0), []
    for number, seconds in enumerate(random.uniform(SHORTEST_S, LONGEST_S, n_utterances)):
        wave = 0.1 * random.standard_normal(int(seconds * SAMPLE_RATE))
        soundfile.write(folder / f"{number}.wav", wave, SAMPLE_RATE, subtype="PCM_16")
        rows.append({"utterance_id": f"u{number}", "audio": f"{number}.wav", "duration_s": len(wave) / SAMPLE_RATE})
    return pd.DataFrame(rows).assign(member=None, reference="a")


def works(base: BaseModel, system: WhisperSystem, manifest: pd.DataFrame, root: Path) -> dict[str, Work]:
    """What is timed, by name: from recordings on disk to results, which are kept in a folder."""

    def embedding(folder: Path) -> bytes:
        read = embedder(base.model, None, RoutingOptions().pooling)
        return embed(read, SpeechDataset(manifest, root, system.inputs), folder, 32).vectors.tobytes()

    def decoding(folder: Path) -> bytes:
        options = DecodingOptions(max_tokens_per_s=TINY_TOKENS_PER_S)
        found = decode(system, SpeechDataset(manifest, root, system.inputs), options, store=BatchStore(folder))
        return repr([(each.utterance_id, each.text, each.mean_logprob) for each in found]).encode()

    return {"embedding": embedding, "greedy decoding": decoding}


def seconds_of(work: Work, n_processes: int) -> tuple[float, str]:
    """Wall time of a work that so many processes share, and the digest of what they found."""
    with tempfile.TemporaryDirectory() as folder:
        fork(n_processes, _share, work, Path(folder))
        seconds, digest = read_json(Path(folder) / "seconds.json")
        return seconds, digest


def _share(rank: int, work: Work, folder: Path) -> None:
    processes.join()
    processes.gathered(None)
    started = time.perf_counter()
    found = work(folder / "work")
    seconds = max(processes.gathered(time.perf_counter() - started))
    if rank == 0:
        write_json(folder / "seconds.json", [seconds, hashlib.sha256(found).hexdigest()])


def measure(base_dir: str, shape: str, n_utterances: int, repeats: int) -> dict[str, Any]:
    """The comparison as JSON.

    Raises:
        RuntimeError: two processes find other results than one.
    """
    base = load_base(base_dir)
    base = new_base(base.processor.tokenizer, TINY, "en") if shape == "tiny" else base
    measured, digests = dict[str, list[float]](), dict[str, set[str]]()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_corpus(Path(folder), n_utterances)
        for name, work in works(base, base_system(base, Path(base_dir), "en", "basic"), manifest, Path(folder)).items():
            for number in range(repeats):
                for n_processes in (1, 2) if number % 2 == 0 else (2, 1):
                    seconds, digest = seconds_of(work, n_processes)
                    measured.setdefault(f"{name}, {(ONE, TWO)[n_processes - 1]}", []).append(seconds)
                    digests.setdefault(name, set()).add(digest)
    if different := [name for name, found in digests.items() if len(found) > 1]:
        raise RuntimeError(f"{' and '.join(different)}: two processes find other results than one")
    claims = [Claim(f"{shape}: {name}, {TWO} : one", f"{name}, {TWO}", f"{name}, {ONE}", 1 / LEAST) for name in digests]
    return record([figure(claim, measured, "s") for claim in claims], measured, "s", **machine("cpu"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=SHIPPED)
    parser.add_argument("--shape", choices=("demo", "tiny"), default="tiny")
    parser.add_argument("--n_utterances", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    one_thread()
    transformers.logging.set_verbosity_error()
    found = {chosen.shape: measure(chosen.base, chosen.shape, chosen.n_utterances, chosen.repeats)}
    print(write(chosen.out / f"sharded-{chosen.shape}", "What a second process saves", found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
