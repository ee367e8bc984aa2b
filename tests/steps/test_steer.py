"""Steps `decoder` and `steer` on a toy corpus: trained, evaluated in every way, registered, and served as it was evaluated."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from analysis.report import percent
from moe.files import read_json
from moe.recognition.recognizer import Recognizer
from moe.serving.requests import RequestError, ServiceOptions, check_params
from moe.serving.service import Service
from moe.system import read_record
from moe.systems.steer_moe.parts import BASE_DIR, DECODER_DIR
from moe.systems.table import load_system
from steps import decoder, evaluate, prepare, pretrain, register, steer
from steps.registry import versions
from steps.reports.training import GROUPS
from steps.tracking import artifacts
from steps.tracking.store import connect
from tests.toys.chain import PLAIN, Runs
from tests.toys.models import RATE, toy_wave, write_chords
from tests.toys.registry import toy_store
from tests.toys.steer import write_sources

SPLITS = ("train",) * 6 + ("dev",) * 2 + ("test",) * 2
TRANSCRIPTS = ("oak", "elm ash", "ash", "oak elm", "fig", "yew oak", "oak", "elm", "ash oak", "fig")
CONTEXT = {"context_floor_s": 1.0, "context_silence_s": 0.2, "context_bucket_s": 0.25}
OPTIONS = {
    **CONTEXT,
    "steer_experts": 3,
    "steering_std": 0.3,
    "prompt_ms": 40,
    "steer_epochs": 1,
    "steer_batch_size": 4,
    "steering_log_every": 1,
}
LAYERS, EXPERTS = 2, 3
SERVED = ServiceOptions(max_tokens_per_s=4.0)


@dataclasses.dataclass(frozen=True)
class Done(Runs):
    """And the runs that hold base and language model, and the one that scored."""

    pretrained: str
    decoded: str
    evaluated: str

    def options(self, **changes: Any) -> steer.StepOptions:
        ids = {"prepare_run_id": self.prepared, "pretrain_run_id": self.pretrained, "decoder_run_id": self.decoded}
        return steer.StepOptions(**ids | OPTIONS | changes)


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("steer") / "store"):
        corpus, toys = write_chords(tmp_path_factory.mktemp("corpus"), TRANSCRIPTS, SPLITS), tmp_path_factory.mktemp("toys")
        write_sources(toys)
        prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True))
        base = {"whisper_model": str(toys / BASE_DIR), "prepare_run_id": prepared, "no_plot": True}
        pretrained = pretrain.run(pretrain.StepOptions(**base))
        decoded = decoder.run(decoder.StepOptions(llm=str(toys / DECODER_DIR)))
        made = Done(corpus, prepared, "", pretrained, decoded, "")
        made = dataclasses.replace(made, trained=steer.run(made.options()))
        scored = evaluate.StepOptions(prepare_run_id=prepared, model_run_id=made.trained, max_tokens_per_s=4.0, **PLAIN)
        yield dataclasses.replace(made, evaluated=evaluate.run(scored))


@pytest.fixture(scope="module")
def service(done: Done) -> Iterator[Service]:
    """The registered one, served with the decoding that was evaluated."""
    register.run(register.StepOptions(evaluate_run_ids=done.evaluated, register_system="steer_moe", registered_model="toy"))
    made = Service(Recognizer(load_system(versions.recognizer_dir("models:/toy@challenger"))), SERVED)
    yield made
    made.close()


def recordings(done: Done) -> list[bytes]:
    return [(done.corpus / f"u{number}.wav").read_bytes() for number, split in enumerate(SPLITS) if split == "test"]


def test_what_trains_is_counted_by_group_and_steering_is_analysed_and_drawn(done: Done) -> None:
    found = done.metrics(done.trained)
    groups = done.table(GROUPS).set_index("group")["n_trainable"]
    assert (
        set(groups.index) == {"vectors", "scales", "routers", "projector"}
        and found["n_trainable"] == groups.sum() < found["n_total"]
    )
    assert groups["scales"] == LAYERS and {"dev/cer", "dev/wer", "dev/loss", "dev/cer_kept", "dev/wer_start"} <= set(found)
    assert f"dev CER {percent(found['dev/cer_kept'])}" in connect().client.get_run(done.trained).info.run_name
    measures = ("scale", "norm", "strength", "entropy_of_use", "entropy_of_decisions", "mutual_information")
    assert {f"steering/{name}" for name in measures} <= set(
        found
    )  # means over the layers, which by themselves are kept in tables
    analyses, kept = done.table("tables/steering.json"), done.table("tables/steering_kept.json")
    assert {f"steering/{name}/layer_{layer}" for name in measures for layer in (1, LAYERS)} <= set(analyses.columns)
    assert {f"steering/use/layer_1/expert_{expert}" for expert in range(EXPERTS)} <= set(kept["measure"])
    drawn = {file.path for file in connect().client.list_artifacts(done.trained, "plots")}
    assert {"plots/steering.png", "plots/steering_use.png"} <= drawn and len(analyses) == 2


def test_it_is_evaluated_in_its_other_ways_too(done: Done) -> None:
    scores = read_json(artifacts.upstream(done.evaluated, artifacts.SCORES))
    assert set(scores["ablations"]) == {"learned", "uniform", "shuffled", "off", "other_audio"}
    table = pd.read_parquet(artifacts.upstream(done.evaluated, artifacts.HYPOTHESES))
    assert all(np.array(list(map(list, use))).shape == (LAYERS, EXPERTS) for use in table["expert_use"])
    assert "expert" not in table.columns  # experts of different layers have nothing to do with each other


def test_served_it_says_what_was_evaluated_and_how_each_layer_used_its_experts(done: Done, service: Service) -> None:
    table = pd.read_parquet(artifacts.upstream(done.evaluated, artifacts.HYPOTHESES)).sort_values("utterance_id")
    answers = service.answer(recordings(done), check_params({"return_routing": True}, SERVED, service.usual))
    rows = [answer.as_row(with_routing=True) for answer in answers]
    assert [row["text"] for row in rows] == table["hypothesis"].tolist() and any(row["text"] for row in rows)
    use = np.array([row["expert_use"] for row in rows])
    assert use.shape == (2, LAYERS, EXPERTS) and np.allclose(use.sum(-1), 1, atol=1e-4)
    assert answers[0].as_row(with_routing=False)["expert_use"] == []


def test_eight_clients_at_once_get_what_each_gets_alone(done: Done, service: Service) -> None:
    asked = check_params({}, SERVED, service.usual)
    waves = [recordings(done)[number % 2] for number in range(8)]
    alone = [service.answer([wave], asked)[0].transcript.text for wave in waves[:2]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda wave: service.answer([wave], asked)[0].transcript.text, waves))
    assert together == alone * 4


def test_a_long_recording_is_answered_in_segments(done: Done, service: Service, tmp_path: Path) -> None:
    seconds = 2.5 * service.recognizer.system.inputs.window_s
    soundfile.write(tmp_path / "long.wav", toy_wave(1, seconds), RATE, subtype="FLOAT")
    found = service.answer([(tmp_path / "long.wav").read_bytes()], check_params({}, SERVED, service.usual))[0].transcript
    assert len(found.segments) >= 3 and found.segments[-1].end_s == pytest.approx(seconds, abs=0.01)
    assert np.array(found.expert_use).shape == (LAYERS, EXPERTS)


def test_experts_to_mix_cannot_be_asked_for(done: Done, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="top_k"):
        check_params({"top_k": 2}, SERVED, service.usual)
    monkeypatch.setattr(evaluate, "load_system", None)
    with pytest.raises(ValueError, match="decoding_top_k=2: SteerMoE does not take it; it takes nothing"):
        evaluate.run(evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=done.trained, decoding_top_k=2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steering_layers": "1,3"}, "steering_layers=1,3: the encoder has layers 1 to 2"),
        ({"projector": "none"}, "projector=none: the encoder's frames have 32 numbers and the language model reads 24"),
        ({"prompt_ms": 50}, "prompt_ms=50: must be a multiple of"),
        ({"max_prompt_tokens": 600}, "max_prompt_tokens=600: the language model has 512 positions"),
        ({"max_sequence_tokens": 600}, "max_sequence_tokens=600: the language model has 512 positions"),
        ({"max_sequence_tokens": 8, "textual_prompt": "oak elm fig ash"}, "textual_prompt: .* leaves no room for text"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    done: Done, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steer, "read_base", None)
    monkeypatch.setattr(steer, "build", None)
    with pytest.raises(ValueError, match=said):
        steer.run(done.options(**given))


def test_a_lora_as_large_as_no_steering_is_refused_before_anything_is_loaded(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"n_trainable": 5, "n_trainable/projector": 5}
    monkeypatch.setattr(steer, "read_record", lambda folder: dataclasses.replace(read_record(folder), facts=facts))
    monkeypatch.setattr(steer, "read_base", None)
    ids = {"prepare_run_id": done.prepared, "pretrain_run_id": done.pretrained, "decoder_run_id": done.decoded}
    with pytest.raises(
        ValueError, match=f"match_run_id={done.trained}: SteerMoE steers nothing; name a steer run with steer_experts"
    ):
        steer.run(steer.StepOptions(**ids, steer_adapter="lora", match_run_id=done.trained, prompt_ms=40))


def test_a_language_model_that_no_server_could_get_is_not_registered(done: Done) -> None:
    source = connect().client.get_run(done.decoded).data.params["llm"]
    named = decoder.run(decoder.StepOptions(llm=source, copy_decoder_mb=0.0))
    trained = steer.run(
        done.options(decoder_run_id=named, steer_epochs=0, steer_batch_size=16, steering_log_every=100, no_plot=True)
    )
    scored = evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=trained, ablations=False, **PLAIN)
    with pytest.raises(ValueError, match=f"llm={source}: a folder that was not copied is on no server; raise copy_decoder_mb"):
        register.run(
            register.StepOptions(evaluate_run_ids=evaluate.run(scored), register_system="steer_moe", registered_model="unpinned")
        )
    assert not connect().client.search_registered_models("name = 'unpinned'")
