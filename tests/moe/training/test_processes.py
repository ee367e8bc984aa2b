"""Several processes make the updates of one: weights, losses, hypotheses; and go on where another number stopped."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from benchmarks.forked import fork
from moe.files import read_json
from moe.training import loading, processes
from moe.training.batches import LengthGroupedSampler, Shares
from tests.toys.steer import trained_steer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings by one process and by two: whole, and stopped by the one to go on as the other, each time in new processes.

    What saves a base comes first in its processes: transformers saves in the first alone once they have met.
    """
    folder = tmp_path_factory.mktemp("processes")
    groups = (
        "1=alone:0:0,begun_alone:0:3,parts_begun_alone:0:3,experts:0:0",
        "2=steer:0:0,two:0:0,begun_by_two:0:3,begun_alone:0:0,dropout:0.1:0,dropout_stopped:0.1:3",
        "2=parts:0:0:fsdp,begun_in_parts:0:3:fsdp,parts_begun_alone:0:0:fsdp,experts_in_parts:0:0:fsdp",
        "1=begun_by_two:0:0,begun_in_parts:0:0",
        "2=losses:0:0,dropout_stopped:0.1:0",
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.toys.two_processes", str(folder), *groups]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights_of(folder: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}_{rank}.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one if one[name].numel())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "begun_alone", "begun_by_two"])
def test_one_process_and_two_make_the_same_updates_also_where_one_goes_on_for_the_other(folder: Path, name: str) -> None:
    assert difference(weights_of(folder, "alone"), weights_of(folder, name)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts", "parts_begun_alone", "begun_in_parts"])
def test_a_model_cut_over_two_processes_learns_the_same_and_either_goes_on_for_the_other(folder: Path, name: str) -> None:
    assert difference(weights_of(folder, "alone"), weights_of(folder, name)) < 1e-5
    checkpoints = sorted((folder / f"{name}_checkpoints").iterdir())
    wanted = sorted((folder / "alone_checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [path.name for path in wanted]
    for found, whole in zip(checkpoints, wanted, strict=True):
        for part in ("weights", "optimizer", "average", "buffers"):
            ours, theirs = (load_file(each / f"{part}.safetensors") for each in (found, whole))
            assert ours.keys() == theirs.keys() and all(ours[key].shape == theirs[key].shape for key in theirs)
            assert difference(ours, theirs) < 1e-5 if theirs else not ours


@pytest.mark.slow
def test_each_process_holds_a_part_of_frozen_matrices_and_of_stacked_experts(folder: Path) -> None:
    first, second = (read_json(folder / f"parts_{rank}.json")["shares"] for rank in (0, 1))
    in_layers = {name for name in first if ".layers." in name}
    assert {"lora_A", "shared_B", "weight"} <= {name.rpartition(".")[2] for name in in_layers}
    assert all(0 < first[name] < 1 and first[name] + second[name] == pytest.approx(1) for name in in_layers)
    assert {name for name, share in first.items() if share < 1} == in_layers
    assert set(read_json(folder / "two_0.json")["shares"].values()) == {1.0}


@pytest.mark.slow
def test_experts_in_parts_are_judged_averaged_and_copied_as_whole_ones(folder: Path) -> None:
    whole = read_json(folder / "experts_0.json")
    for rank in (0, 1):
        found = read_json(folder / f"experts_in_parts_{rank}.json")
        assert difference(weights_of(folder, "experts"), weights_of(folder, "experts_in_parts", rank)) < 1e-5
        assert found["plain"] and len(found["history"]) == 4
        for row, wanted in zip(found["history"], whole["history"], strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_the_loss_curve_and_the_hypotheses_losses_are_those_of_one_process(folder: Path) -> None:
    alone, two = (read_json(folder / f"{name}_0.json") for name in ("alone", "two"))
    curves = [[values["loss"] for _, values in found["logged"] if "loss" in values] for found in (alone, two)]
    assert len(curves[0]) == 8 and curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert two["losses"] == pytest.approx(alone["losses"], abs=1e-4) and len(set(two["losses"])) > 5
    assert read_json(folder / "two_1.json")["losses"] == two["losses"]


@pytest.mark.slow
def test_every_expert_is_equal_in_all_processes_and_gets_a_gradient(folder: Path) -> None:
    for name in ("two", "dropout"):
        first, second = (weights_of(folder, name, rank) for rank in (0, 1))
        assert all(torch.equal(value, second[key]) for key, value in first.items()) and any("lora_B" in key for key in first)
        assert [read_json(folder / f"{name}_{rank}.json")["untouched"] for rank in (0, 1)] == [[], []]


@pytest.mark.slow
def test_two_processes_resume_with_the_same_bits_dropout_and_all(folder: Path) -> None:
    whole, resumed = weights_of(folder, "dropout"), weights_of(folder, "dropout_stopped")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_two_processes_train_the_same_steermoe_and_say_the_same_of_its_steering(folder: Path) -> None:
    system, done = trained_steer(folder / "steer_alone")
    for rank in (0, 1):
        found, analyses = load_file(folder / f"steer_{rank}.safetensors"), read_json(folder / f"steer_{rank}.json")
        for name, each in system.trained().items():
            torch.testing.assert_close(found[name], each.detach(), atol=1e-4, rtol=1e-3)
        assert [set(row) for row in analyses] == [set(row) for row in done.analyses] and len(analyses) == 4
        for row, wanted in zip(analyses, done.analyses, strict=True):
            assert row == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
def test_the_loss_of_every_system_is_that_of_the_whole_batch_however_it_is_shared(folder: Path) -> None:
    """2 utterances in one process and 4 in the other, of unlike numbers of tokens and frames."""
    found = read_json(folder / "losses_0.json")
    assert len(found) == 6 and max(found.values()) < 1e-4, found


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_shares_are_the_batches_of_one_process(n: int, n_processes: int, n_parts: int, size: int, epoch: int) -> None:
    batch_size = n_processes * n_parts * size
    order = LengthGroupedSampler(np.linspace(1, 9, n), batch_size, seed=1)
    order.set_epoch(epoch)
    whole, shares = list(order), []
    for number in range(n_processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "n_processes", lambda: n_processes)
            patch.setattr(processes, "number", lambda number=number: number)
            patch.setattr(processes, "gathered", lambda value: [whole])
            sampler = Shares(order, batch_size, n_parts)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler) and all(shares[-1])
    served = [
        part[0] if len(set(map(tuple, part))) == 1 else [draw for share in part for draw in share]
        for part in zip(*shares, strict=True)
    ]
    assert [draw for part in served for draw in part] == whole


def leave_after(number: int, folder: Path) -> None:
    processes.join()
    with processes.alone():
        assert (processes.n_processes(), processes.number(), processes.gathered(number)) == (1, 0, [number])
    assert (processes.n_processes(), processes.number(), processes.gathered(number)) == (2, number, [0, 1])
    if number == 0:
        time.sleep(0.5)
        (folder / "worked").touch()
    processes.leave()
    (folder / f"saw_{number}").write_text(str((folder / "worked").exists()))


def test_nobody_leaves_before_all_are_done(tmp_path: Path) -> None:
    """Who left at once would close connections on which another may still receive."""
    fork(2, leave_after, tmp_path)
    assert [(tmp_path / f"saw_{number}").read_text() for number in (0, 1)] == ["True", "True"]


def test_a_stall_is_the_share_of_updates_that_waited_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates of 1 + 3 and 2 + 2 seconds; 10 seconds of validation between them do not count."""
    clock = iter([0.0, 0.0, 1.0, 4.0, 14.0, 16.0, 18.0])
    monkeypatch.setattr(loading.time, "monotonic", lambda: next(clock))
    stall = loading.Stall()
    for _ in range(2):
        with stall.waiting():
            pass
        stall.update_ends()
    assert (stall.waiting_s, stall.updates_s, stall.share) == (3.0, 8.0, 0.375)
