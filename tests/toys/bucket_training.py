"""A training that reads shards at an address and writes down who was heard in which update; its processes are killed with signal 9 and started anew.

`python -m tests.toys.bucket_training FOLDER N KILLS` loads the project once and forks N processes for each start, as tests/toys/two_processes
does. FOLDER has `bucket/` with the shards and gets `heard_N/`, a file for each update and process. KILLS are numbers, in turn: at which of
its recordings one of the processes ends itself.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException

from benchmarks.forked import fork
from moe.corpora.locations import CorpusRoot
from moe.corpora.manifest import read_manifest
from moe.corpora.shard_cache import ShardCache
from moe.files import write_json
from moe.system import Batch
from moe.training import processes
from moe.training.checkpoints import CheckpointOptions, Checkpoints
from moe.training.dataset import SpeechDataset
from moe.training.loop import fit
from tests.toys.checkpoints import Recorded
from tests.toys.training import Diary, plan, training

BATCH, TOGETHER, ROOM = 12, 5, 9  # utterances; shards that are shuffled as one; shards that the cache has room for
MANIFEST = "manifest.parquet"


class Loudness:
    """Inputs of an ear: how loud a recording is."""

    window_s = None

    def example(self, waveform: np.ndarray, reference: str) -> Batch:
        return {"loudness": np.float32(np.abs(waveform).mean())}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        return {"loudness": torch.tensor([float(each["loudness"]) for each in examples])}

    def refusal(self, n_samples: int, reference: str) -> str | None:
        return None


class Ear(nn.Module):
    """Learns the mean loudness, and writes down whom it heard in which update."""

    accepts_loss_kwargs = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.mean = folder, nn.Parameter(torch.zeros(()))
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))

    def forward(self, utterance_ids: list[str], loudness: Tensor, **_: Any) -> dict[str, Tensor]:
        self.n += 1
        write_json(self.folder / f"{int(self.n):04d}_{processes.number()}.json", utterance_ids)
        losses = (self.mean - loudness) ** 2
        return {"loss": processes.mean_of_batch(losses.mean(), len(losses)), "utterance_loss": losses.detach()}


class Killed(SpeechDataset):
    """Ends its process at one of the recordings that are asked of it, and sees to the bound of the cache at each."""

    left = -1  # recordings until then

    def waveform(self, index: int) -> np.ndarray:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        cache = self.root.cache
        used = sum(int(path.name.partition("-")[2].partition(".")[0]) for path in Path(cache.folder).glob("*-*[0-9]"))
        if used > cache.n_bytes:
            raise AssertionError(f"{used} bytes are kept, more than {cache.n_bytes}")
        return super().waveform(index)


def train(number: int, folder: Path, n_processes: int, kill_at: int) -> None:
    """Train from the newest checkpoint; the last of the processes ends itself at a recording, with 0 none does."""
    room = ROOM * max(path.stat().st_size for path in (folder / "bucket").rglob("*.tar"))
    root = CorpusRoot(f"file://{folder / 'bucket'}", (), ShardCache(str(folder / f"cache_{n_processes}"), room))
    data = Killed(read_manifest(folder / MANIFEST), root, Loudness())
    data.left = kill_at if number == n_processes - 1 else -1
    heard = folder / f"heard_{n_processes}"
    heard.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / f"checkpoints_{n_processes}", CheckpointOptions(save_every_n_updates=2), Recorded())
    fit(Ear(heard), data, training(plan(batch_size=BATCH, shards_together=TOGETHER), checkpoints=checkpoints), Diary())


def main(folder: Path, n_processes: int, kills: Sequence[int]) -> None:
    """Start, be killed, start again, until nobody kills any more."""
    for kill_at in [*kills, 0]:
        with contextlib.suppress(ProcessExitedException) if kill_at else contextlib.nullcontext():
            fork(n_processes, train, folder, n_processes, kill_at)
            if kill_at:
                raise AssertionError(f"nobody was killed at recording {kill_at}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3].split(",")])
