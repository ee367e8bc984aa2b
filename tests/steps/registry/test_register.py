"""The registry: who becomes champion and why not, the way back, and a model that is whole wherever it is loaded."""

import contextlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from analysis.report import percent_interval
from moe.audio.waveforms import load_audio
from moe.recognition.recognizer import Recognizer
from moe.system import DecodingOptions
from moe.systems.table import load_system
from moe.systems.whisper_moe.asks import MixtureAsk
from steps import register as step
from steps import rollback
from steps.registry import versions
from steps.registry.judging import overall_rates
from steps.reports.scores import read_scores
from steps.tracking import artifacts
from steps.tracking.store import connect, project_root
from tests.toys.models import HALF
from tests.toys.registry import (
    BETTER,
    POOR,
    WORSE,
    WRONG,
    log_toy_asr,
    log_toy_evaluation,
    log_toy_rivals,
    toy_recording,
    toy_store,
)

NAME = "toy-moe"
ELSEWHERE = """
import json, socket, sys
def refuse(*_): raise OSError("this test is offline")
socket.socket.connect = refuse
absent = set(json.loads(sys.argv[2]))
class Present:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)
sys.meta_path = [Present(finder) for finder in sys.meta_path]
import pandas as pd, mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1], model_config={"speech_threshold": 0.0})
data = [open(path, "rb").read() for path in sys.argv[3:]]
said = model.predict(pd.DataFrame({"audio": data}), params={"top_k": 1})
gated = mlflow.pyfunc.load_model(sys.argv[1])
said["gated"] = gated.predict(pd.DataFrame({"audio": data}))["no_speech"]
import moe
print(json.dumps({"rows": said.to_dict("records"), "moe": moe.__file__, "path": sys.path}))
"""


class Registry:
    """What happened when models were registered one after another."""

    def __init__(self, folder: Path) -> None:
        self.asr = log_toy_asr(folder)
        self.client = connect().client
        self.versions: dict[str, str] = {}

    def register(
        self, name: str, wrong: dict[str, float], model: str | None = NAME, rivals: dict[str, float] = POOR, **scores: str
    ) -> str:
        """Register an evaluation beside those of the base model and of one LoRA; the register run's id."""
        own = log_toy_evaluation(self.asr, wrong, seed=len(self.versions), **scores)
        run_ids = ",".join([own, *log_toy_rivals(self.asr, rivals, **scores)])
        run_id = step.run(step.StepOptions(evaluate_run_ids=run_ids, registered_model=model, n_resamples=300))
        self.versions[name] = self.client.get_run(run_id).data.tags["moe.registered"].rpartition("/")[2]
        return run_id

    def said(self, run_id: str) -> str:
        """Who is champion of what and why."""
        return str(self.client.get_run(run_id).data.tags["moe.champion"])

    def version(self, model: str, number: str) -> ModelVersion:
        return self.client.get_model_version(model, number)

    def tags(self, name: str) -> dict[str, str]:
        return self.client.get_model_version(NAME, self.versions[name]).tags

    def alias(self, alias: str) -> str | None:
        try:
            return str(self.client.get_model_version_by_alias(NAME, alias).version)
        except MlflowException:
            return None


@pytest.fixture(scope="module")
def registered(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The first model, really logged."""
    folder = tmp_path_factory.mktemp("registry")
    with toy_store(empty_store, folder / "store"):
        found = Registry(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "dont_write_bytecode", False)  # as for most people, so that none in the model is our doing
            found.register("first", WRONG)
        yield found


@pytest.fixture
def quickly(registered: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later versions share the first one's files: what they are is not the question."""
    uri = f"models:/{get_model_info(f'models:/{NAME}/1').model_id}"

    def log_model(*values: object) -> types.SimpleNamespace:
        return types.SimpleNamespace(registered_model_version=mlflow.register_model(uri, values[-1]).version)

    monkeypatch.setattr(step, "log_model", log_model)


def model_dir(registered: Registry) -> Path:
    return versions.recognizer_dir(f"models:/{NAME}/1").parents[1]


def test_an_alias_is_looked_up_each_time(store: Path, tmp_path: Path) -> None:
    client = connect().client
    client.create_registered_model("moving")
    for folder in (tmp_path / "before", tmp_path / "after"):
        versions.promote("moving", str(client.create_model_version("moving", str(folder)).version))
        assert versions.recognizer_dir("models:/moving@champion").is_relative_to(folder)


def test_better_is_promoted_worse_and_unfair_stay_challengers_and_rollback_goes_back(registered: Registry, quickly: None) -> None:
    assert registered.alias("champion") == "1" and registered.alias("challenger") is None
    assert registered.tags("first")["promotion_reason"].startswith("first champion: ")
    registered.register("better", BETTER)
    assert registered.alias("champion") == registered.versions["better"] and registered.alias("challenger") is None
    assert (
        registered.tags("better")["promoted"] == "true"
        and "better than version 1" in registered.tags("better")["promotion_reason"]
    )
    for name, wrong, said in (
        ("worse", WORSE, "worse than version 2"),
        ("unfair", {"als": 0.02, "stroke": 0.02, "typical": 0.2}, "better than version 2"),
    ):
        run_id = registered.register(name, wrong)
        tags = registered.tags(name)
        assert (
            registered.alias("champion") == registered.versions["better"]
            and registered.alias("challenger") == registered.versions[name]
        )
        assert tags["promoted"] == "false" and said in tags["promotion_reason"]
        assert (artifacts.upstream(run_id, "tables/groups_against_champion.json")).exists()
    assert "worse by more than 2 points for etiology typical by" in registered.tags("unfair")["promotion_reason"]
    assert registered.client.get_registered_model(NAME).tags["champions"] == "1,2"
    assert {mv.current_stage for mv in registered.client.search_model_versions(f"name='{NAME}'")} <= {"None", None}

    run_id = rollback.run(rollback.StepOptions(registered_model=NAME, reason="complaints"))
    assert registered.alias("champion") == "1" and registered.tags("better")["rollback_reason"] == "complaints"
    assert (
        registered.tags("first")["restored_by"] == run_id
        and registered.client.get_registered_model(NAME).tags["champions"] == "1"
    )
    with pytest.raises(ValueError, match=f"version 1 is the first champion of {NAME}"):
        rollback.run(rollback.StepOptions(registered_model=NAME))
    assert registered.alias("champion") == "1"


@pytest.mark.usefixtures("quickly")
class TestWhoMayBeChampion:
    def test_nobody_who_is_not_significantly_better_than_the_base(self, registered: Registry) -> None:
        run_id = registered.register("bad", {"als": 0.97, "stroke": 0.97, "typical": 0.97}, "bad")
        tags = registered.version("bad", "2").tags  # the LoRA, registered beside the mixture, is no better than the base either
        assert versions.champion("bad") is None and tags["promotion_reason"].startswith("not significantly better than the base")
        assert registered.said(run_id).startswith("No champion of bad yet. Version 1 (Whisper-MoE) is challenger: ")

    def test_the_fair_control_where_it_is_better_and_the_mixture_is_registered_beside_it(self, registered: Registry) -> None:
        runs = [
            log_toy_evaluation(registered.asr, WRONG),
            log_toy_evaluation(registered.asr, POOR, system="zero_shot"),
            log_toy_evaluation(registered.asr, BETTER, system="single_lora"),
        ]
        run_id = step.run(step.StepOptions(evaluate_run_ids=",".join(runs), registered_model="pair", n_resamples=300))
        mixture, control = registered.version("pair", "1"), registered.version("pair", "2")
        assert (mixture.tags["system"], control.tags["system"]) == ("whisper_moe", "single_lora")
        assert str(versions.champion("pair").version) == "2"
        assert str(registered.client.get_model_version_by_alias("pair", "challenger").version) == "1"
        assert "worse than its fair control" in mixture.tags["promotion_reason"] and mixture.tags["promoted"] == "false"
        said = registered.said(run_id)
        assert said.startswith("Champion of synthetic: models:/pair@champion, version 2 (one LoRA, same size, ")
        assert "Version 1 (Whisper-MoE) is challenger: " in said
        name = registered.client.get_run(run_id).info.run_name
        assert name.startswith("register · pair · one LoRA, same size, WER "), "the run is named after what may be champion"

    def test_the_fair_control_where_the_mixture_is_not_significantly_better(self, registered: Registry) -> None:
        runs = [
            log_toy_evaluation(registered.asr, WRONG),
            log_toy_evaluation(registered.asr, POOR, system="zero_shot"),
            log_toy_evaluation(registered.asr, WRONG, system="single_lora", seed=1),
        ]
        step.run(step.StepOptions(evaluate_run_ids=",".join(runs), registered_model="tie", n_resamples=300))
        mixture, champion = registered.version("tie", "1"), versions.champion("tie")
        assert champion is not None and champion.tags["system"] == "single_lora"
        assert mixture.tags["promoted"] == "false" and "significantly better" not in champion.tags["promotion_reason"]
        assert "its fair control, one LoRA, same size, which is registered beside it" in mixture.tags["promotion_reason"]

    def test_nobody_whose_base_or_control_was_not_evaluated(self, registered: Registry) -> None:
        for number, (systems, missing) in enumerate(
            (((), "evaluate zero_shot"), (("zero_shot",), "single_lora, was not evaluated"))
        ):
            others = [log_toy_evaluation(registered.asr, POOR, system=system) for system in systems]
            run_ids = ",".join([log_toy_evaluation(registered.asr, BETTER), *others])
            step.run(step.StepOptions(evaluate_run_ids=run_ids, registered_model="alone", n_resamples=300))
            assert missing in registered.version("alone", str(number + 1)).tags["promotion_reason"]
        assert versions.champion("alone") is None

    def test_a_champion_of_another_test_set_is_no_obstacle(self, registered: Registry) -> None:
        registered.register("here", BETTER, "two-sets")
        registered.register("there", WRONG, "two-sets", digest="another test set")
        found = registered.version("two-sets", "2")
        assert (
            str(versions.champion("two-sets").version) == "2" and "scored on another test set" in found.tags["promotion_reason"]
        )

    def test_synthetic_yields_to_real_and_never_the_other_way_round(self, registered: Registry) -> None:
        registered.register("demo", BETTER, "worlds")
        registered.register("real", WRONG, "worlds", note="", corpus="recordings")
        assert str(versions.champion("worlds").version) == "2"
        registered.register("again", BETTER, "worlds")
        assert str(versions.champion("worlds").version) == "2"
        assert "whose place it does not take" in registered.version("worlds", "3").tags["promotion_reason"]

    def test_each_corpus_has_a_name_and_a_version_says_what_it_was_scored_on(self, registered: Registry) -> None:
        run_id = registered.register("own", WRONG, None, note="", corpus="my recordings")
        found = registered.client.get_model_version_by_alias("whisper-moe-my-recordings", "champion")
        rates = overall_rates(read_scores(found.tags["evaluate_run_id"]))
        assert found.tags["test_wer_interval"] == percent_interval(rates["wer"], rates["low"], rates["high"])
        assert found.tags["test_set"] == "my recordings: 72 utterances of 12 speakers"
        assert found.tags["data_digest"] == "d1" and found.tags["commit"]
        page = registered.client.get_registered_model("whisper-moe-my-recordings").description
        assert page.startswith(registered.said(run_id)) and "## Intended use" in page


def test_a_rollback_without_a_champion_says_so(registered: Registry) -> None:
    with pytest.raises(ValueError, match="nobody has no champion"):
        versions.roll_back("nobody", "")


def test_a_champion_made_by_hand_is_remembered_and_one_that_was_deleted_is_skipped(registered: Registry, quickly: None) -> None:
    name, client = "by-hand", registered.client
    registered.register("h1", WRONG, name)
    registered.register("h2", WORSE, name)
    registered.register("h3", WORSE, name)
    client.set_registered_model_alias(name, "champion", "2")
    versions.promote(name, "3")
    assert versions.champions(name) == ["1", "2", "3"]
    client.delete_model_version(name, "2")
    assert versions.roll_back(name, "") == ("3", "1")


def test_a_champion_whose_evaluation_is_gone_is_not_beaten(registered: Registry, quickly: None) -> None:
    registered.register("g1", WRONG, "gone")
    registered.client.set_model_version_tag("gone", "1", "evaluate_run_id", "0123")
    registered.register("g2", BETTER, "gone")
    assert (
        "cannot be compared with version 1: no run '0123'"
        in registered.client.get_model_version("gone", "2").tags["promotion_reason"]
    )


def test_the_model_is_whole_code_and_safetensors(registered: Registry) -> None:
    files = {path.relative_to(model_dir(registered)).as_posix() for path in model_dir(registered).rglob("*") if path.is_file()}
    assert files >= {
        "pyfunc_model.py", "code/moe/recognition/recognizer.py", "artifacts/model/base/model.safetensors", "artifacts/model/gate/gate.safetensors",
        "artifacts/model/expert_0/adapter_config.json", "artifacts/model/shared/adapter_model.safetensors", "artifacts/model_card.md",
        "input_example.json", "serving_input_example.json", "requirements.txt",
    }  # fmt: skip
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin", ".joblib", ".npy", ".pyc"))]
    info = get_model_info(f"models:/{NAME}/1")
    assert [spec.name for spec in info.signature.params.params] == [
        "language", "top_k", "backoff", "return_routing", "word_times", "beam_size", "speaker",
    ]  # fmt: skip
    assert info.signature.outputs.input_names() == [
        "text", "confidence", "no_speech", "expert_weights", "expert_use", "personal", "segments", "words", "timing",
    ]  # fmt: skip
    assert "## Intended use" in registered.client.get_model_version(NAME, "1").description


def test_it_serves_with_the_decoding_that_was_evaluated(registered: Registry) -> None:
    config = get_model_info(f"models:/{NAME}/1").flavors["python_function"]["config"]
    assert (
        config["max_tokens_per_s"] == 2.0 and config["beam_size"] == 1 and config["top_k"] is None and config["max_audio_s"] > 0
    )


def test_loaded_elsewhere_offline_with_nothing_but_what_it_requires_it_says_the_same(
    registered: Registry, tmp_path: Path
) -> None:
    paths = []
    for number, container in enumerate(("wav", "flac", "ogg")):
        paths.append(tmp_path / f"{number}.{container}")
        paths[-1].write_bytes(toy_recording(number, 1.0 + number, container))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MLFLOW_", "HF_"))}
    pins = (model_dir(registered) / "requirements.txt").read_text().split()
    required = closure({pin.partition("==")[0] for pin in pins})
    absent = [
        name
        for name, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(each) for each in owners} & required
    ]
    assert {"espeakng_loader", "datasets", "pytest"} <= set(absent)
    command = [sys.executable, "-c", ELSEWHERE, str(model_dir(registered)), json.dumps(absent), *map(str, paths)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    expected = Recognizer.on_fastest_device(load_system(artifacts.upstream(registered.asr, "model"))).transcribe(
        [load_audio(path) for path in paths], DecodingOptions(max_tokens_per_s=2.0), MixtureAsk(top_k=1)
    )
    assert [row["text"] for row in found["rows"]] == [each.text for each in expected]
    assert [row["expert_weights"] for row in found["rows"]] == [
        pytest.approx(each.routing_weights, abs=HALF) for each in expected
    ]
    assert [row["confidence"] for row in found["rows"]] == [pytest.approx(each.confidence, abs=HALF) for each in expected]
    assert [(row["no_speech"], row["gated"]) for row in found["rows"]] == [(False, True)] * len(paths)  # chords are no speech
    assert str(project_root()) not in found["path"] and Path(found["moe"]).is_relative_to(model_dir(registered))


def closure(names: set[str]) -> set[str]:
    """Distributions and all that they require on this machine, without extras, by their canonical names."""
    waiting, found = list(names), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def test_bad_requests_are_refused_in_python_too(registered: Registry) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    for audio, params, said in [
        (b"noise", {}, "audio 0 cannot be used: unreadable, no known audio container"),
        (toy_recording(), {"top_k": 9}, "top_k=9: must be between 1 and 4, the number of experts"),
        (toy_recording(), {"language": "xx"}, "language='xx': the model knows en"),
        (toy_recording(), {"beam_size": -1}, "beam_size=-1: must be a whole number, between 1 and 8"),
    ]:
        with pytest.raises(MlflowException) as caught:
            model.predict(pd.DataFrame({"audio": [audio]}), params=params)
        assert said in str(caught.value) and caught.value.get_http_status_code() == 400
    plain = model.predict(pd.DataFrame({"audio": [toy_recording()]}), params={"return_routing": False})
    assert plain.loc[0, "expert_weights"] == [] and plain.loc[0, "timing"]["audio_s"] == 0.5


@pytest.mark.parametrize("reference", ["models:/nobody@champion", f"models:/{NAME}@nobody", f"models:/{NAME}/99"])
def test_a_model_that_is_not_registered_is_named(registered: Registry, reference: str) -> None:
    with pytest.raises(ValueError, match=f"model={reference}: not in the registry"):
        versions.recognizer_dir(reference)


def test_a_recogniser_is_found_by_name_run_or_folder(registered: Registry) -> None:
    folder = artifacts.upstream(registered.asr, "model")
    assert versions.recognizer_dir(registered.asr) == folder == versions.recognizer_dir(str(folder))
    assert (versions.recognizer_dir(f"models:/{NAME}@champion") / "model.json").read_bytes() == (
        folder / "model.json"
    ).read_bytes()
