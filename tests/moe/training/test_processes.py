"""Training in two processes under torchrun: every parameter gets a gradient, the ranks stay equal, and it resumes with the same bits."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe.files import read_json
from tests.toys.steer import trained_steer

SCRIPT = Path(__file__).resolve().parents[2] / "toys" / "two_processes.py"


def launch(folder: Path, *trainings: str) -> None:
    """Trainings `name:updates` one after the other in the same two processes; 0 updates are all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={port}",
        SCRIPT,
        folder,
        *trainings,
    ]
    root = SCRIPT.parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_one_model_and_resume_it_exactly(tmp_path: Path) -> None:
    launch(tmp_path, "undisturbed:0", "steer:0", "stopped:3")  # what is stopped leaves the processes unfit for more
    launch(tmp_path, "stopped:0")
    found = [load_file(tmp_path / f"{name}_{rank}.safetensors") for name in ("undisturbed", "stopped") for rank in (0, 1)]
    assert all(torch.equal(value, other[name]) for other in found[1:] for name, value in found[0].items())
    assert read_json(tmp_path / "undisturbed_0.json") == read_json(tmp_path / "undisturbed_1.json") == []
    two_steer_as_one(tmp_path)


def two_steer_as_one(folder: Path) -> None:
    """One process that gathers two batches an update trains the same SteerMoE and says the same of its steering."""
    system, done = trained_steer(folder / "alone", accumulation=2)
    for rank in (0, 1):
        found, analyses = load_file(folder / f"steer_{rank}.safetensors"), read_json(folder / f"steer_{rank}.json")
        for name, each in system.trained().items():
            torch.testing.assert_close(found[name], each.detach(), atol=1e-4, rtol=1e-3)
        assert [set(row) for row in analyses] == [set(row) for row in done.analyses] and len(analyses) == 2
        for row, wanted in zip(analyses, done.analyses, strict=True):
            assert row == pytest.approx(wanted, abs=1e-4)
