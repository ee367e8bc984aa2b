"""Shards at an address under kill -9: whoever is killed and however many they are, each epoch hears every utterance once."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from moe.corpora.manifest import write_manifest
from moe.files import read_json
from tests.toys.bucket_training import BATCH, MANIFEST
from tests.toys.corpora import RATE, ROW, tar_bytes, tone

N_SHARDS, N_EACH, N_KILLS = 100, 3, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred shards, and the manifest of what is in them."""
    folder, rows = tmp_path_factory.mktemp("kept"), []
    (folder / "bucket").mkdir()
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(1, 0.1), RATE, format="WAV")
    for shard in range(N_SHARDS):
        members = {f"{number}.wav": buffer.getvalue() for number in range(N_EACH)}
        (folder / "bucket" / f"{shard:03d}.tar").write_bytes(tar_bytes(members))
        rows += [ROW | {"utterance_id": f"{shard:03d}/{name}", "audio": f"{shard:03d}.tar", "member": name} for name in members]
    durations = np.random.default_rng(0).uniform(0.1, 2, len(rows))
    write_manifest(folder / MANIFEST, pd.DataFrame(rows).assign(duration_s=durations))
    return folder


@pytest.mark.parametrize("n_processes", [1, 2])
def test_each_epoch_hears_every_utterance_once_through_ten_kills(folder: Path, n_processes: int) -> None:
    kills = np.random.default_rng(n_processes).integers(1, 4 * BATCH // n_processes, N_KILLS)
    words = [sys.executable, "-m", "tests.toys.bucket_training", str(folder), str(n_processes), ",".join(map(str, kills))]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    heard = [[], []]
    for path in sorted((folder / f"heard_{n_processes}").iterdir()):
        heard[(int(path.name[:4]) - 1) * BATCH // (N_SHARDS * N_EACH)] += read_json(path)
    everybody = sorted(f"{shard:03d}/{number}.wav" for shard in range(N_SHARDS) for number in range(N_EACH))
    assert [sorted(epoch) for epoch in heard] == [everybody, everybody] and heard[0] != heard[1]
    assert not list((folder / f"cache_{n_processes}").glob("*.part"))
