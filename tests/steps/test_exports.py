"""Where a training reports and a model goes beside the run: named by the user, or nowhere."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from steps import ctc, decoder, main, pretrain
from steps.options.step_options import ExportOptions, ReportOptions, RunOptions
from steps.registry import exports
from steps.tracking import dashboards, runs

TOKEN = "hf_" + "x" * 24


class Hub:
    """Stands for huggingface_hub's client; writes down what is asked of it."""

    asked: list[tuple[str, Any]] = []

    def __init__(self, token: str) -> None:
        assert token == TOKEN

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        self.asked.append((name, private))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        self.asked.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    return folder


def test_a_model_goes_to_a_folder_and_to_a_hub_only_where_they_are_named(store: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    with runs.step_run("asr", RunOptions(run_name="mine")) as step:
        exports.export(step, model, ExportOptions())
        assert not Hub.asked
        exports.export(step, model, ExportOptions(export_dir=str(model.parent / "out")))
        assert (model.parent / "out" / "model.json").exists() and not Hub.asked
        exports.export(step, model, ExportOptions(push_to_hub=True, hub_model_id="me/it"))
        assert Hub.asked == [("me/it", True), ("me/it", ["model.json"])]
        run = step.client.get_run(step.run_id)
    assert run.info.run_name == "mine" and run.data.tags["moe.hub"] == "https://hub/me/it/commit/1"
    assert TOKEN not in str(run.to_dictionary())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"push_to_hub": True}, "hub_model_id=none must be OWNER/NAME.*the environment has no HF_TOKEN"),
        ({"push_to_hub": True, "hub_model_id": "it"}, "hub_model_id=it must be OWNER/NAME"),
        ({"hub_model_id": "me/it"}, "hub_model_id=me/it: push_to_hub=false uploads nothing"),
        ({"hub_private": False}, "hub_private=false: push_to_hub=false uploads nothing"),
    ],
)
def test_an_upload_without_a_place_or_a_token_is_refused(given: dict[str, Any], said: str, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match=said):
        ExportOptions(**given)


@pytest.mark.parametrize(("step", "given"), [(pretrain, {}), (decoder, {}), (ctc, {"prepare_run_id": "p"})])
def test_a_folder_that_holds_something_else_is_never_replaced(step: ModuleType, given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.txt").write_text("dear")
    (tmp_path / "letters/config.json").write_text("{}")
    for place, said in (
        ("letters", "holds other things than a model"),
        ("letters/a.txt", "is no folder"),
        ("letters/a.txt/x", "is no folder"),
    ):
        with pytest.raises(ValueError, match=f"export_dir={tmp_path / place}: .*{said}"):
            step.StepOptions(export_dir=str(tmp_path / place), **given)
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new/folder", "model"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model/config.json").write_text("{}")
        (tmp_path / "model/model.safetensors").touch()
        assert step.StepOptions(export_dir=str(tmp_path / place), **given).export_dir


def test_the_models_of_several_systems_do_not_go_to_one_folder() -> None:
    with pytest.raises(ValueError, match="export_dir=out: asr and baseline would write there"):
        main.check_stages(main.StepOptions(export_dir="out"))
    main.check_stages(main.StepOptions(export_dir="out", systems="wav2vec2_ctc", register_system="any"))
    main.check_stages(main.StepOptions(export_dir="out", until="pretrain", init_from="scratch", tokenizer="bpe"))


def test_metrics_go_to_wandb_with_secrets_hidden(store: Path, monkeypatch) -> None:
    seen: list[Any] = []
    run = SimpleNamespace(log=seen.append)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: seen.append(given) or run))
    with runs.step_run("asr", RunOptions()) as step:
        report = dashboards.dashboard("wandb", step, {"a": "1", "api_key": TOKEN})
        assert report is not None
        report(3, {"train/loss": 0.5})
    assert seen[0]["id"] == step.run_id and seen[0]["config"] == {"a": "1", "api_key": "***"}
    assert seen[1] == {"train/loss": 0.5, "number": 3}


def test_metrics_go_to_tensorboard(store: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    with runs.step_run("asr", RunOptions()) as step:
        report = dashboards.dashboard("tensorboard", step, {"a": "1"})
        assert report is not None
        report(3, {"train/loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard" / step.run_id)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("train/loss")] == [(3, 0.5)]


def test_nothing_is_reported_elsewhere_unless_named_and_what_is_not_installed_is_refused(monkeypatch) -> None:
    assert ReportOptions().report_to == "none" and dashboards.dashboard("none", None, {}) is None  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="report_to=wandb: not installed; pip install -r requirements-dashboards.txt"):
        ReportOptions(report_to="wandb")
