"""A step's run: what it holds, how it ends, what a later step may read from it."""

import dataclasses
import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Param, Run

from moe.options import Options, names_of, option
from steps.options.project_files import ENTRY_POINTS
from steps.tracking import artifacts, runs, step_run
from steps.tracking import store as store_module
from steps.tracking.addresses import Address
from steps.tracking.names import RUN_IDS
from steps.tracking.store import connect

Capture = pytest.CaptureFixture[str]


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """A step for tests."""

    seed: int = option(0, "seed", low=0)
    note: str = option("none", "a text")
    prepare_run_id: str = option("none", "run of prepare")


def held(run_id: str) -> Run:
    return connect().client.get_run(run_id)


def project_run(entry_point: str) -> dict[str, str]:
    """Tags of a run that `mlflow run -e ENTRY_POINT` makes."""
    return {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": entry_point}


def all_runs() -> list[Run]:
    client = connect().client
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def finished(step: str = "prepare", options: Options | None = None, artifact: str = artifacts.MANIFEST) -> str:
    with runs.step_run(step, options or StepOptions()) as run:
        run.log_text("text", artifact)
    return run.run_id


@pytest.mark.usefixtures("store")
class TestRun:
    def test_a_finished_run_says_what_it_was_started_with(self) -> None:
        with runs.step_run("gate", StepOptions(seed=3, note="a b")) as run:
            run.log_metrics({"dev/kl": 0.5}, update=2)
        data = held(run.run_id).data
        assert data.params == {"seed": "3", "note": "a b", "prepare_run_id": "none"}
        assert data.tags["mlflow.runName"] == "gate · seed 3" and data.tags["moe.step"] == "gate"
        assert data.tags["moe.pid"] == str(os.getpid()) and len(data.tags["moe.fingerprint"]) == 64
        assert held(run.run_id).info.status == "FINISHED" and mlflow.active_run() is None
        history = connect().client.get_metric_history(run.run_id, "dev/kl")
        assert [(metric.step, metric.value) for metric in history] == [(2, 0.5)]

    def test_the_experiment_has_a_name_and_a_note(self) -> None:
        found = connect()
        experiment = found.client.get_experiment(found.experiment_id)
        assert experiment.name == "whisper-moe" and "moe.step" in experiment.tags["mlflow.note.content"]

    def test_joins_the_run_that_mlflow_run_made_and_keeps_its_quoted_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`mlflow run` logs shell-quoted text first; logging the plain text again is refused by the store (mlflow.md §2)."""
        found = connect()
        made = found.client.create_run(found.experiment_id, tags=project_run("gate"))
        found.client.log_batch(made.info.run_id, params=[Param("note", "'a b'"), Param("seed", "1e0")])
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        with runs.step_run("gate", StepOptions(seed=1, note="a b"), "gate · toy") as run:
            pass
        assert run.run_id == made.info.run_id and held(run.run_id).info.status == "FINISHED"
        assert held(run.run_id).data.params == {"note": "'a b'", "seed": "1e0", "prepare_run_id": "none"}
        assert held(run.run_id).info.run_name == "gate · toy"

    def test_a_nested_step_does_not_join_its_parents_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pitfall (stack): MLFLOW_RUN_ID in the environment wins over the parent's id."""
        found = connect()
        made = found.client.create_run(found.experiment_id, tags=project_run("main"))
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        with runs.step_run("main", StepOptions()) as parent, runs.step_run("gate", StepOptions()) as child:
            pass
        assert parent.run_id == made.info.run_id != child.run_id
        assert held(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id

    def test_a_failure_ends_run_and_parent_failed_with_the_traceback(self) -> None:
        main, gate = (runs.step_run(step, StepOptions()) for step in ("main", "gate"))
        with pytest.raises(ValueError), main as parent, gate as child:
            raise ValueError("num_experts=0: must be at least 1")
        for run_id, message in ((child.run_id, "gate: num_experts=0"), (parent.run_id, "main: gate: num_experts=0")):
            assert held(run_id).info.status == "FAILED"
            assert held(run_id).data.tags["moe.message"].startswith(message)
            text = mlflow.artifacts.load_text(f"{held(run_id).info.artifact_uri}/{artifacts.TRACEBACK}")
            assert "ValueError: num_experts=0" in text and "test_runs.py" in text
        assert mlflow.active_run() is None

    def test_ctrl_c_ends_run_and_parent_killed(self) -> None:
        main, gate = (runs.step_run(step, StepOptions()) for step in ("main", "gate"))
        with pytest.raises(KeyboardInterrupt), main as parent, gate as child:
            raise KeyboardInterrupt
        assert [held(run.run_id).info.status for run in (parent, child)] == ["KILLED", "KILLED"]
        assert "start the same command again" in held(child.run_id).data.tags["moe.message"]

    def test_options_that_cannot_be_fingerprinted_leave_no_run(self) -> None:
        class Missing(StepOptions):
            def data_digests(self) -> dict[str, str]:
                raise ValueError("dataset_root=/nowhere: no such folder")

        with pytest.raises(ValueError, match="/nowhere"), runs.step_run("prepare", Missing()):
            pytest.fail("the step must not start")
        assert all_runs() == []


@dataclasses.dataclass(frozen=True)
class Reads(Options):
    """A step that reads runs."""

    prepare_run_id: str = option(help="a run that is fine")
    gate_run_id: str = option(help="a run of another step")
    cluster_run_id: str = option(help="a run that is not there")
    evaluate_run_ids: str = option(help="a list")
    embed_run_id: str | None = option(None, "a run that need not be given")


@pytest.mark.usefixtures("store")
class TestUpstream:
    def test_is_the_stores_own_file_not_a_copy(self, store: Path) -> None:
        path = artifacts.upstream(finished(), artifacts.MANIFEST)
        assert path.read_text() == "text" and path.is_relative_to(store / "mlruns")

    def test_is_fetched_once_where_the_store_is_elsewhere(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run_id = finished(artifact="corpus/shards/a.txt")
        monkeypatch.setattr(artifacts, "LocalArtifactRepository", type("Elsewhere", (), {}))
        folder = artifacts.upstream(run_id, artifacts.CORPUS)
        assert (folder / "shards/a.txt").read_text() == "text" and not folder.is_relative_to(store)
        assert artifacts.upstream(run_id, artifacts.CORPUS) == folder
        with pytest.raises(RuntimeError, match="holds no 'gate'"):
            artifacts.upstream(run_id, artifacts.GATE)

    @pytest.mark.parametrize(("status", "word"), [("FAILED", "FAILED"), ("KILLED", "KILLED"), (None, "RUNNING")])
    def test_refuses_a_run_that_did_not_finish(self, status: str | None, word: str) -> None:
        run_id, client = finished(), connect().client
        client.set_terminated(run_id, status) if status else client.update_run(run_id, status="RUNNING")
        with pytest.raises(RuntimeError, match=rf"{run_id}.*step prepare.*{word}.*'manifest.parquet'"):
            artifacts.upstream(run_id, artifacts.MANIFEST)

    def test_names_run_step_and_artifact_that_is_not_there(self) -> None:
        run_id = finished()
        with pytest.raises(RuntimeError, match=rf"{run_id} \(step prepare, FINISHED\) holds no 'gate'"):
            artifacts.upstream(run_id, artifacts.GATE)

    def test_a_step_refuses_all_runs_that_cannot_be_read_before_it_begins(self) -> None:
        gone, other = "0" * 32, finished()
        given = Reads(prepare_run_id=other, gate_run_id=other, cluster_run_id=gone, evaluate_run_ids=f"{gone},{other}")
        with pytest.raises(RuntimeError) as refusal, runs.step_run("asr", given):
            pytest.fail("the step must not start")
        said = str(refusal.value).split("; ")
        assert [each.partition(":")[0] for each in said] == ["gate_run_id", "cluster_run_id", *["evaluate_run_ids"] * 2]
        assert f"{other} (step prepare, FINISHED) holds no 'gate'" in said[0] and "no run '000" in said[1]

    def test_of_every_run_that_a_step_can_be_given_it_is_known_what_is_read(self) -> None:
        steps = [importlib.import_module(f"steps.{name}").StepOptions for name in ENTRY_POINTS]
        assert {name for name in names_of(*steps) if name.endswith(RUN_IDS)} == set(artifacts.READ_OF)

    @pytest.mark.parametrize("run_id", ["none", "", "0123456789abcdef0123456789abcdef"])
    def test_refuses_an_id_without_a_run(self, run_id: str) -> None:
        with pytest.raises(RuntimeError, match="no run"):
            artifacts.upstream(run_id, artifacts.MANIFEST)

    def test_lineage_walks_back_to_the_first_run(self) -> None:
        first = finished("synthesize")
        second = finished("prepare", StepOptions(prepare_run_id=first))
        third = finished("gate", StepOptions(prepare_run_id=second))
        assert list(artifacts.lineage(third).items()) == [(third, "gate"), (second, "prepare"), (first, "synthesize")]


@pytest.mark.usefixtures("store")
class TestLogging:
    def test_many_metrics_take_few_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        real = mlflow.MlflowClient.log_batch

        def counted(self: mlflow.MlflowClient, run_id: str, **batch: list) -> None:
            calls.append(len(batch.get("metrics", ())))
            real(self, run_id, **batch)

        with runs.step_run("gate", StepOptions()) as run:
            monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
            run.log_history((epoch, {"train/loss": 1.0 / epoch, "dev/loss": 2.0 / epoch}) for epoch in range(1, 751))
        assert calls == [1000, 500]
        assert len(connect().client.get_metric_history(run.run_id, "dev/loss")) == 750

    def test_a_loss_that_is_not_a_number_is_logged_as_such(self) -> None:
        with runs.step_run("gate", StepOptions()) as run:
            run.log_metrics({"train/loss": float("nan"), "dev/loss": np.float32(1.5)})
        assert np.isnan(held(run.run_id).data.metrics["train/loss"]) and held(run.run_id).data.metrics["dev/loss"] == 1.5

    def test_tables_are_kept_in_forms_the_ui_shows(self) -> None:
        table = pd.DataFrame({"etiology": ["ALS", "Down"], "wer": [0.25, np.nan]})
        with runs.step_run("evaluate", StepOptions()) as run:
            for ending in ("json", "csv", "parquet", "json"):  # a second one replaces the first
                run.log_table(table, f"tables/wer.{ending}")
            with pytest.raises(ValueError, match="'tables/wer.txt'.*json"):
                run.log_table(table, "tables/wer.txt")
        shown = json.loads(artifacts.upstream(run.run_id, "tables/wer.json").read_text())
        assert shown == {"columns": ["etiology", "wer"], "data": [["ALS", 0.25], ["Down", None]]}
        assert held(run.run_id).data.tags["mlflow.loggedArtifacts"] == '[{"path": "tables/wer.json", "type": "table"}]'
        for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
            pd.testing.assert_frame_equal(read(artifacts.upstream(run.run_id, f"tables/wer.{ending}")), table)

    def test_files_folders_and_figures_lie_where_named(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a.json").write_text("{}")
        with runs.step_run("gate", StepOptions()) as run:
            run.log_folder(tmp_path / "out", artifacts.GATE)
            run.log_file(tmp_path / "out" / "a.json", "tables")
            run.log_figure(plt.figure(), "plots/x.png")
            assert run.artifacts() == ["gate", "plots", "tables"]
        for artifact in ("gate/a.json", "tables/a.json", "plots/x.png"):
            assert artifacts.upstream(run.run_id, artifact).is_file()
        assert plt.get_fignums() == []

    def test_inputs_carry_our_own_digest(self) -> None:
        """Pitfall (stack): MLflow's own dataset digests read only 10 000 rows; two long tables that differ below look equal."""
        with runs.step_run("gate", StepOptions()) as run:
            run.log_input("manifest", "0123456789abcdef" * 4, "run 1, manifest.parquet", "training", n_rows=20_000)
        (logged,) = held(run.run_id).inputs.dataset_inputs
        assert logged.dataset.digest == ("0123456789abcdef" * 4)[:36] and json.loads(logged.dataset.profile) == {
            "num_rows": 20_000
        }
        assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "training")]

    def test_a_description_too_long_is_cut_and_says_so(self) -> None:
        with runs.step_run("gate", StepOptions()) as run:
            run.describe("ä" * 20_000)
        note = held(run.run_id).data.tags["mlflow.note.content"]
        assert len(note) == step_run.MAX_NOTE and note.endswith(step_run.CUT)


@pytest.mark.usefixtures("store")
class TestCommand:
    @pytest.fixture(autouse=True)
    def signals_as_they_were(self) -> Iterator[None]:
        before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
        yield
        for number, handler in before:
            signal.signal(number, handler)

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["--seed", "-1"], "seed=-1: must be at least 0"),
            (["--prest", "full"], "prest: no such option"),
            (["--seed", "x"], "seed='x': must be"),
        ],
    )
    def test_bad_options_end_with_code_2_and_leave_no_run(self, arguments: list[str], word: str, capsys: Capture) -> None:
        with pytest.raises(SystemExit) as end:
            runs.command(lambda options: pytest.fail("must not run"), StepOptions, arguments)
        assert end.value.code == 2 and word in capsys.readouterr().err and all_runs() == []

    @pytest.mark.parametrize("error", [ValueError("a=0: must be\n at least 1"), RuntimeError("a=0: must be at least 1")])
    def test_a_failed_step_ends_with_code_1_and_one_line(self, error: Exception, capsys: Capture) -> None:
        def run(options: StepOptions) -> None:
            with runs.step_run("gate", options):
                raise error

        with pytest.raises(SystemExit) as end:
            runs.command(run, StepOptions, [])
        assert end.value.code == 1
        assert capsys.readouterr().err == "test_runs: gate: a=0: must be at least 1\n"

    def test_a_defect_shows_its_traceback(self) -> None:
        def run(options: StepOptions) -> None:
            with runs.step_run("gate", options):
                raise KeyError("a defect")

        with pytest.raises(KeyError):
            runs.command(run, StepOptions, [])
        assert [run.info.status for run in all_runs()] == ["FAILED"]

    def test_sigterm_ends_the_run_killed_and_says_how_to_continue(self, capsys: Capture) -> None:
        def run(options: StepOptions) -> None:
            with runs.step_run("gate", options):
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(SystemExit) as end:
            runs.command(run, StepOptions, [])
        assert end.value.code == 143 and [run.info.status for run in all_runs()] == ["KILLED"]
        assert "SIGTERM" in (said := capsys.readouterr().err) and "start the same command again" in said


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


class TestStore:
    def test_is_the_projects_own_without_another_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert store_module.tracking_address().sqlite_path == store_module.project_root() / "mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
        assert store_module.tracking_address() == Address("http://127.0.0.1:5000")

    def test_one_that_cannot_be_used_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mlflow.db").write_text("this is not a database, and long enough to be read as one: " * 40)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        monkeypatch.setattr(store_module, "SCHEMA_WAIT_S", 0.0)
        with pytest.raises(RuntimeError, match="mlflow.db cannot be used"):
            connect()

    def test_writers_wait_little(self, store: Path) -> None:
        connect()
        with sqlite3.connect(store / "mlflow.db") as database:
            assert database.execute("pragma journal_mode").fetchone() == ("wal",)

    def test_a_kill_while_the_schema_is_made_leaves_no_half_of_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store killed half-way could not be used again: "table issues already exists"."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        (tmp_path / ".mlflow.db.making").write_bytes(b"half a schema")
        (tmp_path / ".mlflow.db.making-journal").write_bytes(b"half a schema")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(store_module.os, "link", _interrupt)
            connect()
        assert not (tmp_path / "mlflow.db").exists()
        connect()
        assert (tmp_path / "mlflow.db").exists() and not list(tmp_path.glob(".*making*"))

    def test_two_processes_at_once_make_a_fresh_store(self, tmp_path: Path) -> None:
        """Pitfall (stack): two processes that make the schema at once break each other (2 of 3 crashed without the lock)."""
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"}
        code = "from steps.tracking.store import connect; print(connect().experiment_id)"
        begun = [
            subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=store_module.project_root(), stdout=-1, text=True)
            for _ in range(2)
        ]
        ids = {process.communicate(timeout=600)[0].split()[-1] for process in begun}
        assert [process.returncode for process in begun] == [0, 0] and len(ids) == 1
