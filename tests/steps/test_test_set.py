"""What is asked of every test utterance stands beside it, though it is read as it lies in its shard."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tests.toys.corpora as toys
from moe.corpora.manifest import read_utterance
from moe.corpora.shard_cache import ShardCacheOptions
from moe.corpora.summaries import loudness_of
from moe.recognition.chunks import Chunks, ChunkSet
from steps.inputs import test_set
from steps.inputs.corpus import CorpusRoot
from tests.toys.bucket_training import Loudness


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Utterances of a Parquet file of two rows a row group, in another order than they lie there."""
    toys.write_parquet(tmp_path / "corpus")
    audio = "data/train-00000-of-00001.parquet"
    found = [toys.ROW | {"utterance_id": f"{9 - row}", "audio": audio, "member": f"audio:{row}"} for row in range(4)]
    return pd.DataFrame(found).sort_values("utterance_id", ignore_index=True)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_each_utterance_has_its_own_loudness_and_its_own_silence(
    scheme: str, rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCacheOptions(shard_cache_dir=str(tmp_path / "cache")).shard_cache()
    root, plain = CorpusRoot(f"{scheme}{tmp_path}/corpus", (), cache if scheme else None), str(tmp_path / "corpus")
    owner = np.array([0, 1, 1, 2, 3])  # the second is in two chunks
    chunks = rows.iloc[owner].assign(start=0, stop=[-1, 4000, -1, -1, -1]).reset_index(drop=True)
    data = ChunkSet(Chunks(chunks, owner), root, Loudness())
    assert test_set._loudness(rows, owner, data) == loudness_of(rows, plain).tolist()

    class Listener:
        def __init__(self, threshold: float) -> None:
            self.last = read_utterance(plain, rows.iloc[2])

        def is_speech(self, waveform: np.ndarray) -> bool:
            return not np.array_equal(waveform, self.last)

    monkeypatch.setattr(test_set, "VoiceActivity", Listener)
    assert test_set._no_speech(data, 0.5).tolist() == [False, False, False, True, False]
