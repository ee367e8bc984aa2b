"""What is exported says what we say: merged weights, adapters that PEFT loads alone, and other runtimes where they are installed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModel
from transformers import WhisperForConditionalGeneration

from moe.corpora.tables import write_table
from moe.files import write_json
from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights
from moe.system import Merges
from moe.systems.table import load_system
from moe.systems.whisper import conversion, other_runtimes
from moe.systems.whisper.base_model import save_base
from steps import export
from steps.tracking import runs
from steps.tracking.store import connect
from tests.toys.models import N_EXPERTS, adapter_options, inputs, logits_of, shared_base, system_of, toy_mixture, write_corpus
from tests.toys.registry import ToyOptions, write_toy_model

MIXTURES = [(0.0,) * 4, (0.25,) * 4, (0.0, 0.0, 1.0, 0.0), (0.5, -0.25, 0.0, 2.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("export") / "model")


def routed_logits(folder: Path, experts: tuple[float, ...]) -> torch.Tensor:
    """Logits of the saved mixture under fixed weights, all experts computed."""
    mel, _, tokens = inputs(2)
    weights = torch.tensor([experts] * 2)
    return logits_of(load_system(folder).module, mel, tokens.clamp_min(0), RoutingWeights(weights, N_EXPERTS))


@pytest.mark.parametrize("experts", MIXTURES, ids=["shared", "uniform", "one", "any"])
def test_merged_weights_say_what_the_routed_layers_say(folder: Path, tmp_path: Path, experts: tuple[float, ...]) -> None:
    system = load_system(folder)
    assert isinstance(system, Merges)
    system.save_merged(tmp_path / "merged", experts)
    merged = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    mel, _, tokens = inputs(2)
    with torch.no_grad():
        found = merged(input_features=mel, decoder_input_ids=tokens.clamp_min(0)).logits
    torch.testing.assert_close(found, routed_logits(folder, experts), atol=2e-4, rtol=1e-4)


def test_ranks_and_scales_of_shared_and_experts_may_differ(tmp_path: Path) -> None:
    save_base(shared_base(), tmp_path / "base")
    model = toy_mixture(2, adapter_options(shared_r=3, rank_stabilised=True))
    system = system_of(model)
    system.base_dir = tmp_path / "base"
    system.save_merged(tmp_path / "merged", (0.3, 0.7))
    merged = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    mel, _, tokens = inputs(2)
    with torch.no_grad():
        found = merged(input_features=mel, decoder_input_ids=tokens.clamp_min(0)).logits
    expected = logits_of(model, mel, tokens.clamp_min(0), RoutingWeights(torch.tensor([[0.3, 0.7]] * 2), 2))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)  # the base on disk is in half precision


def test_every_expert_is_a_peft_folder_that_stands_alone(folder: Path, tmp_path: Path) -> None:
    load_system(folder).save_adapters(tmp_path / "peft")
    mel, _, tokens = inputs(2)
    for name, experts in {"shared": MIXTURES[0], "expert_2": MIXTURES[2]}.items():
        adapted = AutoPeftModel.from_pretrained(tmp_path / "peft" / name, dtype=torch.float32).eval()
        with torch.no_grad():
            found = adapted(input_features=mel, decoder_input_ids=tokens.clamp_min(0)).logits
        torch.testing.assert_close(found, routed_logits(folder, experts), atol=2e-4, rtol=1e-4)
    assert json.loads((tmp_path / "peft/shared/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        (tmp_path / "peft/base").absolute()
    )


def test_a_mixture_of_what_experts_say_is_no_one_model() -> None:
    system = system_of(toy_mixture(routing=RoutingOptions(mixing="loss")))
    with pytest.raises(ValueError, match="mixing=loss .* export one expert"):
        system.check_mixture(MIXTURES[1])
    system.check_mixture(MIXTURES[2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("shared", (0, 0, 0)), ("uniform", (1 / 3,) * 3), ("2", (0, 0, 1)), ("0.5,0.5,0", (0.5, 0.5, 0))],
)
def test_a_mixture_by_its_name(text: str, expected: tuple[float, ...]) -> None:
    assert export.mixture_of(text, 3) == expected


def test_a_recogniser_without_experts_takes_no_mixture_of_them() -> None:
    assert export.mixture_of("uniform", 0) == export.mixture_of("shared", 0) == ()
    for text in ("0", "0.5,0.5", "best"):
        with pytest.raises(ValueError, match=f"experts={text}: this recogniser has no experts"):
            export.mixture_of(text, 0)


@pytest.mark.parametrize("text", ["3", "0.5,0.5", "a,b,c", "best", "nan,0,0"])
def test_what_is_no_mixture_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="experts="):
        export.mixture_of(text, 3)


def test_formats_that_there_are_not_and_tools_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="formats='tflite': must be one of transformers, peft, ctranslate2, onnx"):
        export.StepOptions(formats="tflite")
    with pytest.raises(ValueError, match="prepare_run_id=abc: formats=peft is not decoded"):
        export.StepOptions(formats="peft", prepare_run_id="abc")
    with pytest.raises(ValueError, match="experts=shared: formats=peft writes every expert"):
        export.StepOptions(formats="peft", experts="shared")
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="ctranslate2 needs ctranslate2: pip install -r requirements-export.txt"):
        export.StepOptions(formats="ctranslate2")


def test_a_folder_that_holds_something_else_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers/setup.py").write_text("a checkout, say")
    for formats in ("transformers", "peft,transformers"):
        with pytest.raises(
            ValueError, match=f"output_dir={tmp_path / 'transformers'}: the folder holds other things than a model"
        ):
            export.StepOptions(output_dir=str(tmp_path), formats=formats)
    export.StepOptions(output_dir=str(tmp_path), formats="peft")


def test_what_was_exported_before_is_replaced(store: Path, folder: Path, tmp_path: Path) -> None:
    given = {"model": str(folder), "output_dir": str(tmp_path), "formats": ",".join([*formats(), "peft"])}
    for experts in ("0", "1"):
        export.run(export.StepOptions(**given, experts=experts))
    for name in given["formats"].split(","):
        (tmp_path / name / "export.json").unlink()  # as where a call was killed
    export.StepOptions(**given)


def prepared_run(tmp_path: Path) -> str:
    corpus, prepared = tmp_path / "audio", tmp_path / "prepared"
    corpus.mkdir()
    manifest = write_corpus(corpus, (0.4, 1.6, 0.7, 2.7)).assign(split="test")
    write_table(prepared / "manifest.parquet", manifest)
    facts = {
        "name": "toys",
        "root": str(corpus),
        "normaliser": "basic",
        "normaliser_version": "basic/1",
        "language": "en",
        "synthetic": True,
    }
    write_json(prepared / "corpus.json", facts)
    with runs.step_run("prepare", ToyOptions()) as run:
        for path in prepared.iterdir():
            run.log_file(path)
    return run.run_id


def formats() -> list[str]:
    return ["transformers", *(name for name in ("ctranslate2", "onnx") if conversion.missing(name) is None)]


def test_the_step_checks_each_export_on_the_test_split(store: Path, folder: Path, tmp_path: Path, capsys) -> None:
    """Toys with random weights babble, and in a longer context otherwise: what is counted is what the files say."""
    prepare, out = prepared_run(tmp_path), tmp_path / "out"
    options = export.StepOptions(
        model=str(folder), output_dir=str(out), formats=",".join(formats()), experts="1", prepare_run_id=prepare
    )
    run = connect().client.get_run(export.run(options))
    said = capsys.readouterr().out
    for name in formats():
        report = json.loads((out / name / "export.json").read_text())
        assert report["experts"] == [0, 1, 0, 0] and report["check"]["n_utterances"] == 4
        assert run.data.metrics[f"{name}/n_different"] == report["check"]["n_different"]
        assert f"{name}: {report['check']['n_different']} of 4 utterances differ" in said
    waves = [np.asarray(wave, np.float32) for wave in (np.sin(np.arange(9000) / 9), np.sin(np.arange(20_000) / 30))]
    plain = other_runtimes.says_transformers(out / "transformers")(waves)
    if "ctranslate2" in formats():
        assert other_runtimes.says_ctranslate2(out / "ctranslate2", out / "transformers")(waves) == plain
    if "onnx" in formats():
        assert other_runtimes.says_onnx(out / "onnx", out / "transformers")(waves) == plain
    shutil.rmtree(out)


def test_what_cannot_be_merged_is_refused_by_its_title(store: Path, tmp_path: Path) -> None:
    from tests.toys.ctc import toy_ctc

    toy_ctc().save(tmp_path / "ctc")
    with pytest.raises(ValueError, match="cannot be exported"):
        export.run(export.StepOptions(model=str(tmp_path / "ctc")))
