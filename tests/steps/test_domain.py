"""Step `domain` on a toy corpus: trained, evaluated under every token, registered, transcribed and served."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import soundfile

from moe.files import read_json
from moe.recognition.recognizer import Recognizer
from moe.serving.requests import RequestError, ServiceOptions, check_params
from moe.serving.service import Service
from moe.systems.domain_whisper.domains import Domains
from moe.systems.table import load_system
from moe.systems.whisper.base_model import save_base
from steps import domain, evaluate, prepare, pretrain, register, transcribe
from steps.registry import versions
from steps.reports.training import GROUPS
from steps.tracking import artifacts
from tests.toys.chain import PLAIN, Runs
from tests.toys.models import RATE, WORDS, shared_base, toy_wave
from tests.toys.registry import toy_store

SPLITS = ("train",) * 8 + ("dev",) * 3 + ("test",) * 3
ETIOLOGIES = ("als", "typical", "unknown")
CONTEXT = {"context_floor_s": 1.0, "context_silence_s": 0.2, "context_bucket_s": 0.25}
OPTIONS = {**CONTEXT, "domain_epochs": 1, "domain_batch_size": 4, "no_plot": True, "unfreeze_encoder_blocks": 1}
GREEDY = {"max_tokens_per_s": 3.0, **PLAIN}


@dataclasses.dataclass(frozen=True)
class Done(Runs):
    """And the run that holds the base."""

    pretrained: str

    def train(self, **changes: Any) -> str:
        return domain.run(domain.StepOptions(prepare_run_id=self.prepared, pretrain_run_id=self.pretrained, **OPTIONS | changes))

    def evaluate(self, **changes: Any) -> str:
        given = {"prepare_run_id": self.prepared, "model_run_id": self.trained, **GREEDY, **changes}
        return evaluate.run(evaluate.StepOptions(**given))


def write_corpus(folder: Path) -> Path:
    """Chords of three etiologies, one of which the corpus does not tell."""
    rows = ["path,transcript,speaker,etiology,split"]
    for number, split in enumerate(SPLITS):
        soundfile.write(folder / f"u{number}.wav", toy_wave(number, 0.5 + 0.05 * number), RATE, subtype="FLOAT")
        etiology = ETIOLOGIES[number % 2] if number % 7 else ETIOLOGIES[2]
        rows.append(f"u{number}.wav,{WORDS[number % 5]} {WORDS[number % 3]},{split}{number % 2},{etiology},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("domain") / "store"):
        corpus, base = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("base") / "toy"
        save_base(shared_base(), base)
        prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True))
        pretrained = pretrain.run(pretrain.StepOptions(whisper_model=str(base), prepare_run_id=prepared, no_plot=True))
        done = Done(corpus, prepared, "", pretrained)
        yield dataclasses.replace(done, trained=done.train())


def test_what_trains_and_what_has_a_domain_is_counted(done: Done) -> None:
    found, trains = done.metrics(done.trained), done.table("tables/trainable.json").set_index("module")
    groups = done.table(GROUPS).set_index("group")["n_trainable"]
    assert found["n_trainable"] == trains["n_trainable"].sum() and found["n_total"] == trains["n_total"].sum()
    assert trains["n_trainable"]["rows"] == 2 * shared_base().model.config.d_model == groups["domain_tokens"]
    assert trains["n_trainable"]["encoder.layers.0.self_attn"] == 0 < trains["n_trainable"]["encoder.layers.1.self_attn"]
    assert trains["n_trainable"]["decoder.embed_tokens"] == 0
    counts = done.table("tables/domains.json").set_index("domain")
    assert counts.loc[["atypical", "none", "normal"], "train"].tolist() == [3, 2, 3]
    assert found["token_share"] == pytest.approx(6 / 8 * 0.9)


def test_dev_is_scored_by_domain(done: Done) -> None:
    found, history = done.metrics(done.trained), done.table("tables/history.json")
    assert {f"{rate}/{name}" for rate in ("wer", "cer", "loss") for name in ("normal", "atypical")} <= set(history.columns)
    assert {"dev/wer", "dev/cer", "dev/loss", "dev/cer_kept", "dev/token_share", "dev/row_distance"} <= set(found)
    classifier = done.table("tables/classifier_metrics.json").set_index("metric")["value"]
    assert found["dev/domain_accuracy"] == pytest.approx(classifier["dev/accuracy"]) and "temperature" in classifier
    confused = done.table("tables/classifier.json").set_index("domain")
    assert confused.sum(axis=1).to_dict() == {"normal": 1, "atypical": 2}
    assert done.table("tables/row_similarities.json")[["domain", "other"]].to_numpy().tolist() == [["normal", "atypical"]]


def test_evaluation_gives_the_token_that_is_asked_for(done: Done) -> None:
    given = {
        asked: pd.read_parquet(artifacts.upstream(done.evaluate(domain=asked, ablations=False), artifacts.HYPOTHESES))["domain"]
        for asked in ("corpus", "none", "atypical")
    }
    assert given["corpus"].tolist() == ["normal", "atypical", "normal"]
    assert set(given["none"]) == {"none"} and set(given["atypical"]) == {"atypical"}


def test_evaluation_scores_the_other_tokens_beside_the_usual(done: Done) -> None:
    scores = read_json(artifacts.upstream(done.evaluate(), artifacts.SCORES))
    assert set(scores["ablations"]) == {"learned", "right", "wrong", "no_token"} and scores["system"] == "domain_whisper"


def test_a_token_that_the_model_has_not_is_refused_before_it_is_loaded(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load_system", None)
    with pytest.raises(ValueError, match="domain=dyslexic: the model has normal, atypical; or auto, none"):
        done.evaluate(domain="dyslexic")
    monkeypatch.setattr("steps.inputs.corpus.Prepared.rows", lambda self, split: pd.DataFrame({"etiology": ["unknown"]}))
    with pytest.raises(ValueError, match="domain=corpus: no utterance of the corpus belongs to a domain"):
        done.evaluate(domain="corpus")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"domains": "als,als"}, "als is named twice"),
        ({"domains": "als,Down"}, "'Down' must be of a-z"),
        ({"domains": "als"}, "one domain leaves nothing to condition on"),
        ({"oversample": 2.0, "balance_domains": True}, "oversample=2 and balance_domains=true contradict"),
        ({"domain_lora_r": 4}, "domain_lora_r=4: unfreeze=blocks does not read it"),
        ({"unfreeze": "none", "unfreeze_decoder_blocks": 1}, "unfreeze_decoder_blocks=1: unfreeze=none does not read it"),
        ({"decoder_parts": "attention,ffn"}, "decoder_parts=attention,ffn: ffn: there are attention, mlp"),
        ({"mask_mels": 3}, "mask_mels=3: needs augment=true"),
        ({"unfreeze": "none", "domain_learning_rate": 0.1}, "domain_learning_rate=0.1: unfreeze=none trains nothing beside"),
        ({"unfreeze": "lora", "layer_decay": 0.5}, "layer_decay=0.5: unfreeze=lora does not read it"),
        ({"unfreeze": "lora", "domain_lora_r": 2, "decoder_parts": "mlp"}, "decoder_parts=mlp: unfreeze=lora does not read it"),
        ({"unfreeze_decoder_blocks": 0, "decoder_parts": "mlp"}, "decoder_parts=mlp: unfreeze_decoder_blocks=0 trains none"),
        ({"token_dropout": 1.0, "unfreeze": "none"}, "unfreeze=none and token_dropout=1 train nothing"),
        ({"token_dropout": 1.0, "token_learning_rate": 0.1}, "token_learning_rate=0.1: token_dropout=1 trains no token"),
        ({"domains": "each", "normal_etiologies": "als"}, "normal_etiologies=als: domains=each reads it with oversample or"),
    ],
)
def test_options_that_say_nothing_or_too_much_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        domain.StepOptions(prepare_run_id="p", pretrain_run_id="b", **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"domains": "als,cp"}, "domains=als,cp: the train split has one domain only.*als, typical"),
        ({"domains": "als,typical,cp"}, "domains=als,typical,cp: cp is not in the train split"),
        ({"normal_etiologies": "als,typical"}, "the train split has one domain only"),
        ({"unfreeze_encoder_blocks": 3}, "unfreeze_encoder_blocks=3: the base has 2"),
    ],
)
def test_domains_and_blocks_that_are_not_there_are_refused_before_the_base_is_loaded(
    done: Done, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "read_base", None)
    with pytest.raises(ValueError, match=said):
        done.train(**given)


def test_a_dev_split_without_any_domain_is_refused_with_the_way_out(done: Done) -> None:
    prepared = domain.read_prepared(done.prepared)
    lacking = dataclasses.replace(prepared, manifest=prepared.manifest.assign(etiology="unknown"))
    with pytest.raises(ValueError, match="no dev utterance belongs to one of them .dev has unknown.; .*complete_dev=true"):
        domain.refuse_dev(lacking, Domains(("normal", "atypical"), ("typical",), "two"))


def test_it_is_registered_transcribes_and_serves_with_the_token_that_is_asked_for(done: Done, tmp_path: Path) -> None:
    register.run(
        register.StepOptions(
            evaluate_run_ids=done.evaluate(ablations=False), register_system="domain_whisper", registered_model="toy"
        )
    )
    address = "models:/toy@challenger"
    options = transcribe.StepOptions(
        audio=str(done.corpus / "u0.wav"), model=address, output_dir=str(tmp_path), speech_threshold=0.0, domain="none"
    )
    transcribe.run(options)
    service = Service(Recognizer(load_system(versions.recognizer_dir(address))))
    recording = (done.corpus / "u0.wav").read_bytes()
    texts = {
        asked: service.answer([recording], check_params({"domain": asked}, ServiceOptions(), service.usual))[0].transcript.text
        for asked in ("auto", "none", "normal")
    }
    assert read_json(tmp_path / "u0.json")["text"] == texts["none"]
    with pytest.raises(RequestError, match="domain=dyslexic: the model has normal, atypical; or auto, none"):
        service.answer([recording], check_params({"domain": "dyslexic"}, ServiceOptions(), service.usual))
    with pytest.raises(RequestError, match="domain=corpus: no manifest says the domain here"):
        service.answer([recording], check_params({"domain": "corpus"}, ServiceOptions(), service.usual))
    service.close()
    params = mlflow.models.get_model_info(address).signature.params.params
    assert {param.name: param.default for param in params}["domain"] == "auto"
