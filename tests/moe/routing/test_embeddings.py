"""The store of embeddings: right vectors under right names, resumable after a kill, and never silently incomplete."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from moe.routing import embeddings
from moe.routing.embeddings import INDEX, MATRIX, Embeddings, embed, read_embeddings
from moe.systems.whisper import encoder as whisper_encoder
from moe.systems.whisper.encoder import embedder, pooled_embedding
from moe.training import processes
from moe.training.batches import length_batches
from tests.toys.checkpoints import Killed
from tests.toys.models import CONTEXT, HALF, bare_model, batch_of, dataset, write_corpus

BASE = bare_model()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("corpus")
    return dataset(write_corpus(root), root)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PART_BATCHES", 1)


def store(data, folder: Path, layer: int | None = 0, pooling: str = "mean", batch_size: int = 2) -> Embeddings:
    return embed(embedder(BASE, layer, pooling), data, folder, batch_size)


def kill_after(monkeypatch: pytest.MonkeyPatch, n_batches: int) -> list[list[str]]:
    """Let the encoder see `n_batches` batches and no more; returns the list of those it sees."""
    seen: list[list[str]] = []

    def pooled(encoder, mel, *args):
        if len(seen) == n_batches:
            raise Killed
        seen.append(mel.shape)
        return pooled_embedding(encoder, mel, *args)

    monkeypatch.setattr(whisper_encoder, "pooled_embedding", pooled)
    return seen


@pytest.mark.parametrize(
    ("layer", "pooling", "size"), [(0, "mean", 32), (0, "mean_std", 64), (1, "mean", 32), (None, "mean", 32)]
)
def test_each_vector_is_its_utterances_own(data, layer: int | None, pooling: str, size: int, tmp_path: Path) -> None:
    found = store(data, tmp_path, layer, pooling, batch_size=1)
    assert found.utterance_ids == tuple(f"u{number}" for number in range(6)) and found.vectors.shape == (6, size)
    assert found.vectors.dtype == np.float32
    for number in range(6):
        batch = batch_of(data, [number], CONTEXT)
        with torch.inference_mode():
            alone = pooled_embedding(BASE.model.encoder, batch["mel"], batch["n_frames"], layer, pooling)[0]
        np.testing.assert_allclose(found.vectors[number], alone.numpy(), atol=HALF, rtol=HALF)


def test_the_conv_stems_vectors_do_not_depend_on_the_batches(data, tmp_path: Path) -> None:
    """Pitfall 8: padding, and with it the company an utterance is embedded in, has no effect."""
    one, six = (store(data, tmp_path / str(size), batch_size=size).vectors for size in (1, 6))
    np.testing.assert_allclose(one, six, atol=HALF, rtol=HALF)


def test_a_finished_store_reads_back_and_holds_nothing_else(data, tmp_path: Path) -> None:
    made, read = store(data, tmp_path), read_embeddings(tmp_path)
    assert read.utterance_ids == made.utterance_ids and np.array_equal(read.vectors, made.vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([MATRIX, INDEX])
    index = pd.read_parquet(tmp_path / INDEX)
    assert index["row"].tolist() == list(range(6)) and index["utterance_id"].tolist() == list(made.utterance_ids)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8 * 1024 * 6


def test_a_killed_run_goes_on_where_it_was(data, tmp_path: Path, monkeypatch) -> None:
    whole = store(data, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        store(data, tmp_path / "killed")
    assert len(list((tmp_path / "killed").glob("part_*.safetensors"))) == 2 and not (tmp_path / "killed" / MATRIX).exists()
    with monkeypatch.context() as patch:
        seen = kill_after(patch, 9)
        resumed = store(data, tmp_path / "killed")
    assert len(seen) == len(length_batches(data, 2)) - 2  # the two finished batches were not computed again
    assert np.array_equal(resumed.vectors, whole.vectors)


@pytest.mark.parametrize("number", [0, 1])
def test_one_process_goes_on_with_what_either_of_two_left(data, number: int, tmp_path: Path, monkeypatch) -> None:
    def gathered(value: object) -> list[object]:
        if isinstance(value, dict):
            raise Killed  # when its own parts are there
        return [value]

    whole, n_batches = store(data, tmp_path / "whole"), len(length_batches(data, 2))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name, value in (("n_processes", lambda: 2), ("number", lambda: number), ("gathered", gathered)):
            patch.setattr(processes, name, value)
        store(data, tmp_path / "left")
    with monkeypatch.context() as patch:
        seen = kill_after(patch, 9)
        resumed = store(data, tmp_path / "left")
    assert len(seen) == n_batches - len(range(number, n_batches, 2)) and np.array_equal(resumed.vectors, whole.vectors)
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == sorted([MATRIX, INDEX])


def test_a_part_that_was_cut_off_is_computed_again_and_no_other(data, tmp_path: Path, monkeypatch) -> None:
    whole = store(data, tmp_path / "whole")
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        store(data, folder)
    first = folder / "part_00000.safetensors"
    first.write_bytes(first.read_bytes()[:-20])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        seen = kill_after(patch, 1)
        store(data, folder)  # killed again after one batch
    assert len(list(folder.glob("part_*.safetensors"))) == 2  # the new part did not take the place of the whole one
    with monkeypatch.context() as patch:
        seen = kill_after(patch, 9)
        resumed = store(data, folder)
    assert len(seen) == len(length_batches(data, 2)) - 2 and np.array_equal(resumed.vectors, whole.vectors)


def test_a_flipped_byte_is_noticed(data, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    whole, folder = store(data, tmp_path / "whole"), tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        store(data, folder)
    part = folder / "part_00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-3] ^= 1  # a weight's bit: the file still loads
    part.write_bytes(content)
    assert np.array_equal(store(data, folder).vectors, whole.vectors) and "part_00001.safetensors are damaged" in caplog.text


def test_an_emptied_part_is_computed_again(data, tmp_path: Path) -> None:
    whole = store(data, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "part_00000.safetensors").touch()
    assert np.array_equal(store(data, tmp_path / "killed").vectors, whole.vectors)


def test_a_missing_embedding_is_refused_by_name_and_never_skipped() -> None:
    """Pitfall 7: 4157 of 4823 utterances were skipped because their embeddings were missing."""
    found = Embeddings(("u0", "u1"), np.array([[1.0], [2.0]], np.float32))
    with pytest.raises(ValueError, match=r"2 utterances have no embedding, e.g. \['u2', 'u3'\]; run embed"):
        found.select(["u2", "u0", "u3"])


def test_vectors_are_selected_by_name_in_the_order_asked() -> None:
    found = Embeddings(("u0", "u1", "u2"), np.array([[0.0], [1.0], [2.0]], np.float32))
    assert found.select(["u2", "u0", "u2"]).tolist() == [[2.0], [0.0], [2.0]]
    assert found.select([]).shape == (0, 1)


@pytest.mark.parametrize("layer", [0, 1, None])
def test_a_vector_depends_on_neither_batch_size_nor_neighbours_nor_order(data, layer: int | None, tmp_path: Path) -> None:
    """Above the stem frames attend to the padding: in a longer neighbour's context an utterance would have another vector."""
    one, six = (store(data, tmp_path / str(size), layer, "mean_std", size).vectors for size in (1, 6))
    turned = dataset(pd.DataFrame(data.rows[::-1]), data.root)
    reverse = store(turned, tmp_path / "turned", layer, "mean_std", 6)
    assert np.array_equal(reverse.select([f"u{number}" for number in range(6)]), six)
    np.testing.assert_allclose(one, six, atol=HALF, rtol=HALF)
    batch = batch_of(data, list(range(6)), CONTEXT)
    with torch.inference_mode():
        together = pooled_embedding(BASE.model.encoder, batch["mel"], batch["n_frames"], layer, "mean_std").numpy()
    assert (layer == 0) == np.allclose(together, six, atol=HALF, rtol=HALF)


def test_what_is_stored_is_what_the_gate_sees_to_the_bit_and_takes_two_bytes_a_value(data, tmp_path: Path) -> None:
    made = store(data, tmp_path, 1, "mean_std", batch_size=1)
    assert (
        np.array_equal(read_embeddings(tmp_path).vectors, made.vectors) and (tmp_path / MATRIX).stat().st_size < 6 * 64 * 2 + 200
    )
    for number in range(6):
        batch = batch_of(data, [number], CONTEXT)
        with torch.inference_mode():
            seen = pooled_embedding(BASE.model.encoder, batch["mel"], batch["n_frames"], 1, "mean_std")[0]
        assert seen.dtype == torch.float32 and np.array_equal(made.vectors[number], seen.numpy())


def test_vectors_are_kept_at_large_v2s_width_in_less_than_8_kib(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((64, 2560)).astype(embeddings.STORED)
    embeddings._finish(
        tmp_path, [f"u{number}" for number in range(64)], {f"u{number}": row for number, row in enumerate(vectors)}
    )
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8 * 1024 * 64


def test_in_half_precision_only_the_encoder_is(data, tmp_path: Path) -> None:
    for layer in (0, None):
        single = store(data, tmp_path / f"single{layer}", layer, "mean_std").vectors
        half = embed(embedder(BASE, layer, "mean_std", "bf16"), data, tmp_path / f"half{layer}", 2).vectors
        assert half.dtype == np.float32 and not np.array_equal(half, single)
        np.testing.assert_allclose(half, single, atol=0.05 * np.abs(single).max())
