"""As many threads as the process may use, the user's word before ours, and a policy that is there before torch is loaded."""

import os
import subprocess

import joblib
import pytest
import torch
from mlflow.projects import load_project

from moe.training.threads import PASSIVE, WAIT_POLICY, described, settle_threads
from steps.options.project_files import ENTRY_POINTS
from steps.tracking.store import project_root


@pytest.mark.parametrize(
    ("n_threads", "policy", "said"),
    [
        (2, "passive", "2 threads, passive waiting"),
        (8, " PASSIVE", "8 threads, passive waiting"),
        (2, None, "2 threads, active waiting; beside other work OMP_WAIT_POLICY=passive is faster"),
        (2, "active", "2 threads, active waiting; beside other work OMP_WAIT_POLICY=passive is faster"),
        (1, None, "1 thread"),
    ],
)
def test_what_is_used_is_said(n_threads: int, policy: str | None, said: str) -> None:
    assert described(n_threads, policy) == said


@pytest.mark.parametrize(
    ("said", "n_allowed", "n_threads"),
    [(None, 2, 2), (None, 8, 3), (None, 3, 3), ("3", 2, 3)],
    ids=["a smaller container", "more cores than threads", "as it is", "the user's own number"],
)
def test_torch_keeps_to_the_cores_there_are(
    said: str | None, n_allowed: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: n_allowed)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert settle_threads().startswith(f"{n_threads} threads") and torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("said", "used"), [(None, PASSIVE), ("active", "active")])
def test_every_entry_point_starts_with_the_policy_and_the_users_own_wins(said: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != WAIT_POLICY} | (
        {WAIT_POLICY: said} if said else {}
    )
    project = load_project(str(project_root()))
    for name in ENTRY_POINTS:
        entry_point = project.get_entry_point(name)
        command = entry_point.compute_command(dict.fromkeys(entry_point.parameters, "x"), None)
        prefix = command.partition(" python -m ")[0]
        shown = subprocess.run(
            ["bash", "-c", f"{prefix} printenv {WAIT_POLICY}"], env=environment, capture_output=True, text=True
        )
        assert shown.stdout.strip() == used, name
