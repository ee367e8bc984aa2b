"""Utterances are read as they lie in their shards, so that each row group of a Parquet file is decoded once, whatever the ids are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tests.toys.corpora as toys
from moe.corpora import shards
from moe.corpora.preparation import PreparationOptions, prepare
from moe.corpora.shards import reading_order

N_ROWS, N_EACH = 24, 4  # utterances of a file, and of a row group


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are decoded from now on."""
    found, read = list[int](), pq.ParquetFile.read_row_group
    shards._row_group.cache_clear()

    def noted(self: pq.ParquetFile, group: int, **given) -> pa.Table:
        found.append(group)
        return read(self, group, **given)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    return found


def write(folder: Path) -> Path:
    """Files of which no id says where its row is."""
    random = np.random.default_rng(0)
    for name in ("train", "validation", "test"):
        ids = random.permutation(N_ROWS)
        audio = [{"bytes": toys.encode(toys.tone(100 * len(name) + number), "flac"), "path": None} for number in range(N_ROWS)]
        table = pa.table({
            "audio": pa.array(audio, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "id": [f"{name} {number:02d}" for number in ids],
            "transcript": [f"number {number}" for number in ids],
            "speaker": [name] * N_ROWS,
        })  # fmt: skip
        folder.mkdir(exist_ok=True)
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet", row_group_size=N_EACH)
    return folder


def test_each_row_group_is_decoded_once_for_a_manifest_whatever_the_ids(tmp_path: Path, decoded: list[int]) -> None:
    found = prepare(PreparationOptions(corpus="parquet", dataset_root=str(write(tmp_path / "c")), n_workers=1))
    assert found.counts["n_used"] == 3 * N_ROWS and found.manifest["utterance_id"].is_monotonic_increasing
    assert decoded == list(range(N_ROWS // N_EACH)) * 3


def test_what_lies_in_no_row_is_read_file_by_file_in_the_order_of_its_id() -> None:
    rows = pd.DataFrame(
        [
            ("b.tar", "x", "1"),
            ("a.parquet", "audio:10", "2"),
            ("a.parquet", "audio:9", "3"),
            ("b.tar", "y", "0"),
            ("a.wav", None, "4"),
        ],
        columns=["audio", "member", "utterance_id"],
    )
    assert reading_order(rows).tolist() == [2, 1, 4, 3, 0]
    assert reading_order(rows.iloc[4:]).tolist() == [0] and reading_order(rows.iloc[:0]).tolist() == []
