"""A column is known by its name in any spelling, and is what its data say it is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.corpora.formats.columns import NAMES, Columns, as_text
from moe.corpora.formats.table import CorpusOptions
from moe.corpora.listing import Listing, list_corpus
from moe.corpora.manifest import read_utterance
from moe.corpora.preparation import PreparationOptions, prepare

N = 8


def listed(corpus: str, root: Path, **options) -> Listing:
    return list_corpus(corpus, str(root), CorpusOptions(**options))


@pytest.mark.parametrize(
    "spell",
    [str.upper, str.title, lambda name: f" {name} ", lambda name: name.replace("_", " "), lambda name: name.replace("_", "-")],
)
def test_every_known_name_is_known_in_any_spelling(spell) -> None:
    for role, names in NAMES.items():
        for name in names:
            others = [known[0] for other, known in NAMES.items() if other != role]
            columns = Columns.of([spell(name), *others], CorpusOptions(), "t")
            assert columns.roles[role] == spell(name)
            assert bool(columns.notes) == (spell(name) != name)


def test_two_columns_for_one_role_are_said_or_refused() -> None:
    columns = Columns.of(["path", "text", "transcript"], CorpusOptions(), "t")
    assert columns.roles["transcript"] == "transcript" and "not 'text'" in columns.notes[0]
    with pytest.raises(ValueError, match="'Speaker' and 'SPEAKER' may both be the speaker"):
        Columns.of(["path", "text", "Speaker", "SPEAKER"], CorpusOptions(), "t")
    with pytest.raises(ValueError, match="'text' and 'text' may both be the transcript"):
        Columns.of(["path", "text", "text"], CorpusOptions(), "t")


@pytest.mark.parametrize(
    ("cell", "text"), [(7, "7"), (7.0, "7"), (7.5, "7.5"), ("007", "007"), (None, ""), (float("nan"), ""), (True, "True")]
)
def test_a_cell_as_text(cell, text) -> None:
    assert as_text(cell) == text


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_texts_of_any_arrow_type_read_like_plain_ones(kind: pa.DataType, tmp_path: Path) -> None:
    names = [f"{k}.flac" for k in range(N)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(toys.audio_of(number))
    columns = {"path": names, "text": [f"t{k}" for k in range(N)], "speaker": [f"s{k}" for k in range(N)]}
    pq.write_table(
        pa.table({name: pa.array(values, pa.string()).cast(kind) for name, values in columns.items()}), tmp_path / "a.parquet"
    )
    utterances = listed("parquet", tmp_path).utterances
    assert sorted(utterances["audio"]) == names and utterances["reason"].isna().all()
    for entry in utterances.to_dict("records"):
        np.testing.assert_allclose(read_utterance(tmp_path, entry), toys.tone(int(entry["audio"][0])), atol=1e-4)


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
CELLS = {
    "bytes": lambda n: pa.array([toys.audio_of(n)]),
    "large bytes": lambda n: pa.array([toys.audio_of(n)], pa.large_binary()),
    "struct": lambda n: pa.array([{"path": None, "bytes": toys.audio_of(n)}], STRUCT),
    "large struct": lambda n: pa.array([{"path": "x", "bytes": toys.audio_of(n)}], pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})),
    "samples": lambda n: pa.array(
        [{"array": toys.tone(n).tolist(), "sampling_rate": toys.RATE, "path": "x"}],
        pa.struct({"array": pa.list_(pa.float32()), "sampling_rate": pa.int64(), "path": pa.string()}),
    ),
    "whole samples": lambda n: pa.array([{"array": np.round(toys.tone(n) * 32768).astype(int).tolist(), "sampling_rate": toys.RATE}]),
}  # fmt: skip


@pytest.mark.parametrize("corpus", ["parquet", "hf"])
@pytest.mark.parametrize("cell", CELLS)
def test_recordings_of_any_arrow_type_are_read(cell: str, corpus: str, tmp_path: Path) -> None:
    table = pa.table({"audio": CELLS[cell](3), "path": ["clips/nowhere.wav"], "text": ["hi"], "speaker": [7]})
    if corpus == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        import datasets

        datasets.Dataset(table).save_to_disk(str(tmp_path))
    (utterance,) = listed(corpus, tmp_path).utterances.to_dict("records")
    np.testing.assert_allclose(read_utterance(tmp_path, utterance), toys.tone(3), atol=1e-4)
    assert utterance["speaker"] == "7"


@settings(max_examples=25, deadline=None)
@given(held=st.lists(st.booleans(), min_size=1, max_size=N), statistics=st.booleans(), group=st.integers(1, N))
def test_a_row_holds_its_recording_or_a_path_whatever_the_others_do(
    held: list[bool], statistics: bool, group: int, tmp_path_factory
) -> None:
    root = tmp_path_factory.mktemp("mixed")
    cells = [{"path": f"{k}.flac", "bytes": toys.audio_of(k) if is_held else None} for k, is_held in enumerate(held)]
    for number, is_held in enumerate(held):
        if not is_held:
            (root / f"{number}.flac").write_bytes(toys.audio_of(number))
    table = pa.table({"audio": pa.array(cells, STRUCT), "text": [f"{k}" for k in range(len(held))]})
    pq.write_table(table, root / "a.parquet", write_statistics=statistics, row_group_size=group)
    utterances = listed("parquet", root).utterances
    assert len(utterances) == len(held)
    for entry in utterances.to_dict("records"):
        np.testing.assert_allclose(read_utterance(root, entry), toys.tone(int(entry["transcript"])), atol=1e-4)


def test_whole_numbers_with_gaps_stay_whole(tmp_path: Path) -> None:
    """One shard holds the speakers as integers, the next, with a gap, as floats: they are the same speakers."""
    for place, speakers in enumerate(([1, 2], [1.0, None])):
        pq.write_table(pa.table({"path": ["a", "b"], "text": ["x", "y"], "speaker": speakers}), tmp_path / f"{place}.parquet")
    assert sorted(listed("parquet", tmp_path).utterances["speaker"]) == ["1", "1", "2", "unknown"]


def test_a_column_that_cannot_be_kept_is_said_whatever_its_role(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "text": ["x"], "speaker": [["s1"]], "tags": [["t"]]}), tmp_path / "a.parquet")
    notes = listed("parquet", tmp_path).notes
    assert [
        any(f"column '{name}'" in note and "is not read" in note for note in notes) for name in ("speaker", "tags", "text")
    ] == [True, True, False]


def test_a_missing_file_of_a_numbered_set_is_named(tmp_path: Path) -> None:
    toys.write_parquet(tmp_path)
    (tmp_path / "data/train-00000-of-00001.parquet").rename(tmp_path / "data/train-00000-of-00002.parquet")
    assert listed("parquet", tmp_path).faults["file"].tolist() == ["data/train-00001-of-00002.parquet"]


def corpus_with_ids(root: Path, ids: list[str]) -> Path:
    rows = [{"id": own, "path": f"{k}.wav", "text": f"word {k}", "speaker": f"s{k}"} for k, own in enumerate(ids)]
    for k in range(len(ids)):
        (root / f"{k}.wav").write_bytes(toys.encode(toys.tone(k)))
    toys.write_csv(root / "manifest.csv", rows)
    return root


def test_ids_that_repeat_are_no_ids_of_utterances(tmp_path: Path) -> None:
    root = corpus_with_ids(tmp_path, [f"{k % 3}" for k in range(9)])
    found = prepare(PreparationOptions(dataset_root=str(root)))
    assert found.counts["n_used"] == 9 and set(found.manifest["corpus_id"]) == {"0", "1", "2"}
    assert any("repeats in 6 of 9 rows" in note and "id_column" in note for note in found.notes)


def test_a_few_repeats_are_duplicates_and_a_named_column_is_believed(tmp_path: Path) -> None:
    root = corpus_with_ids(tmp_path, [*map(str, range(29)), "0"])
    assert set(listed("folder", root).utterances["utterance_id"]) == set(map(str, range(29)))
    repeating = corpus_with_ids(tmp_path, [f"{k % 3}" for k in range(9)])
    assert set(listed("folder", repeating, id_column="id").utterances["utterance_id"]) == {"0", "1", "2"}
    assert isinstance(listed("folder", repeating, id_column="text").utterances, pd.DataFrame)
