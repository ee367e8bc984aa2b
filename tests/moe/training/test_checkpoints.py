"""A checkpoint is whole or absent, damage is named and stepped over, and what is kept is the best and the last few."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.training import checkpoints as checkpoint
from moe.training.checkpoints import (
    DAMAGED,
    PREFIX,
    Checkpoint,
    Checkpoints,
    DamagedCheckpoint,
    read_checkpoint,
)
from moe.training.random_state import generators, set_generators
from tests.toys.checkpoints import damage, filled, kept, names, state


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path: Path) -> None:
    found = filled(tmp_path).newest()
    assert found.values == state(3).values
    assert (
        torch.equal(found.tensors["weights"]["a"], state(3).tensors["weights"]["a"])
        and found.tensors["weights"]["n"].dtype == torch.int64
    )
    assert found.tensors["stage"] == {}


@given(st.floats(allow_nan=False), st.binary(min_size=4, max_size=4))
@settings(max_examples=20)
def test_any_number_and_any_bits_survive(tmp_path_factory, value: float, bits: bytes) -> None:
    folder = tmp_path_factory.mktemp("c")
    tensor = torch.frombuffer(bytearray(bits), dtype=torch.int32)
    kept(folder).save(Checkpoint({"x": value}, {"t": {"x": tensor.view(torch.float32)}}), 1, 0)
    found = kept(folder).newest()
    assert found.values == {"x": value} and torch.equal(found.tensors["t"]["x"].view(torch.int32), tensor)


@pytest.mark.parametrize(
    "how", ["truncated", "emptied", "missing", "flipped", "added", "no manifest", "{", "[]", '{"files": {}}']
)
def test_a_damaged_newest_one_is_named_kept_aside_and_the_one_before_is_taken(tmp_path: Path, how: str) -> None:
    """Stack pitfall: a truncated, emptied or incomplete newest checkpoint was fatal."""
    checkpoints = filled(tmp_path)
    newest = names(tmp_path)[-1]
    damage(tmp_path / newest, how)
    assert checkpoints.newest().values["update"] == 2
    assert newest in checkpoints.events.of("damaged_checkpoint")[0]
    assert names(tmp_path, DAMAGED) == [DAMAGED + newest] and newest not in names(tmp_path)


@given(st.data())
@settings(max_examples=30)
def test_a_bit_flipped_anywhere_is_seen_or_changes_nothing(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("c")
    filled(folder, 1)
    path = folder / names(folder)[0]
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    raw = bytearray(file.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    try:
        found = read_checkpoint(path)
    except DamagedCheckpoint as error:
        assert path.name in str(error)
    else:
        assert file.name == "manifest.json" and found.values == state(1).values


def test_all_damaged_means_none(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, 2)
    for name in names(tmp_path):
        damage(tmp_path / name, "emptied")
    assert checkpoints.newest() is None and len(checkpoints.events.of("damaged_checkpoint")) == 2
    assert len(names(tmp_path, DAMAGED)) == 2


def test_the_best_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = kept(tmp_path, keep_checkpoints=2)
    for number in range(1, 8):
        checkpoints.save(state(number), number, number, is_best=number in (1, 3))
    assert [int(name.split("_")[1]) for name in names(tmp_path)] == [3, 6, 7]


def test_a_writing_cut_short_leaves_the_earlier_ones_and_is_swept_away(tmp_path: Path, monkeypatch) -> None:
    checkpoints = filled(tmp_path, 2)

    def killed(*_) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(checkpoint, "write_json", killed)
        checkpoints.save(state(9), 9, 0)
    (tmp_path / f".{PREFIX}00000009_epoch_0000.x1").mkdir()  # what kill -9 leaves
    assert checkpoints.newest().values["update"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == names(tmp_path) and len(names(tmp_path)) == 2


def test_a_full_disk_costs_the_checkpoint_and_a_message(tmp_path: Path, monkeypatch) -> None:
    checkpoints = filled(tmp_path, 2)

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    checkpoints.save(state(3), 3, 0)
    assert "No space left" in checkpoints.events.of("checkpoint_not_written")[0]
    assert checkpoints.newest().values["update"] == 2


def test_nothing_is_a_pickle(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path = tmp_path / names(tmp_path)[0]
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    json.loads((path / "state.json").read_text())


def test_without_a_folder_nothing_is_kept() -> None:
    assert Checkpoints().newest() is None and Checkpoints().below("x").folder is None


def test_generators_go_on_where_they_were() -> None:
    import random

    import numpy as np

    before = generators()

    def draw() -> tuple:
        return random.gauss(0, 1), float(np.random.normal()), torch.rand(3).tolist(), random.random(), float(np.random.rand())

    random.gauss(0, 1), np.random.normal()  # the second of a pair is remembered
    halfway = json.loads(json.dumps(generators()))
    first = draw()
    set_generators(halfway)
    assert draw() == first
    set_generators(before)
