"""Document 002's names, walked: each has an option of ours on its step and on `main`, with the default and the bounds of the table."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moe.options import from_text
from moe.systems.steer_moe.training import SteerTrainingOptions
from steps import decoder, main, prepare, steer
from steps.chain.stages import stage_options, stages_of
from steps.options.command_line import file_values
from steps.tracking.store import project_root
from tests.toys.chain import pending_options

TABLE = """
steering.num_experts | steer_experts | 8 | steer
steering.steering_scale | steering_scale | 0.1 | steer
steering.use_layer_scales | use_layer_scales | true | steer
steering.steering_gradient_clip | steering_gradient_clip | 1.0 | steer
training.batch_size | steer_batch_size | 16 | steer
training.learning_rate | steer_learning_rate | 3e-3 | steer
training.steering_learning_rate | steering_learning_rate | 0.1 | steer
training.steering_learning_rate | scale_learning_rate | 3e-3 | steer
training.router_learning_rate | router_learning_rate | 3e-3 | steer
epochs | steer_epochs | 10 | steer
weight decay | steer_weight_decay | 0 | steer
dropout | steering_dropout | 0 | steer
early stopping, metric | steer_select | cer | steer
early stopping, patience | steer_patience | 3 | steer
load-balancing loss weight | steering_balance_coefficient | 0.0 | steer
textual_prompt | textual_prompt | none | steer
max_audio_length | max_duration_s | 30 | prepare
max_text_length | max_text_tokens | 448 | steer
max_length | max_sequence_tokens | 512 | steer
Max Prompt Tokens | max_prompt_tokens | 512 | steer
audio_column | audio_column | none | prepare
text_column | transcript_column | none | prepare
Every 100 steps | steering_log_every | 100 | steer
num_workers | num_workers | 0 | steer
FP16 / BF16 | fp16 | none | steer
FP16 / BF16 | no_fp16 | false | steer
gradient checkpointing | gradient_checkpointing | false | steer
torch.compile() | compile | none | steer
spread of the first vectors | steering_std | 0.01 | steer
which layers | steering_layers | all | steer
unit of a decision | steering_unit | frame | steer
top k | steering_top_k | none | steer
steering or LoRA | steer_adapter | steering | steer
size of the LoRA | match_run_id | none | steer
who writes | writer | llm | steer
pooling by 4 | prompt_ms | 80 | steer
pooling | prompt_pooling | mean | steer
projection | projector | mlp | steer
chat template | chat_template | auto | steer
part of the data | steer_percent | 100 | steer
LLM decoder | llm | base/synthetic-en-decoder | decoder
layers of the embedded one | decoder_layers | 4 | decoder
its width | decoder_width | 160 | decoder
its heads | decoder_heads | 4 | decoder
its pseudo-audio | decoder_units | phonemes | decoder
its updates | decoder_updates | 900 | decoder
its batches | decoder_batch_size | 32 | decoder
its rate | llm_learning_rate | 3e-3 | decoder
copied up to | copy_decoder_mb | 1024 | decoder
"""
STEPS: dict[str, ModuleType] = {"steer": steer, "decoder": decoder, "prepare": prepare}
ROWS = [tuple(part.strip() for part in line.split("|")) for line in TABLE.strip().splitlines()]
IDS = {"prepare_run_id": "p", "pretrain_run_id": "b", "decoder_run_id": "d"}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"steering_top_k": 9}, "steering_top_k=9: steer_experts=8 has no more to mix"),
    ({"steer_experts": 0, "steering_scale": 0.2}, "steering_scale=0.2: steer_experts=0 steers nothing"),
    ({"steer_experts": 0, "steering_gradient_clip": 0.5}, "steering_gradient_clip=0.5: there is no steering to train"),
    (
        {"steer_adapter": "lora"},
        "match_run_id is missing: steer_adapter=lora is as large as another steer run; start steer by itself, -e steer",
    ),
    ({"match_run_id": "x"}, "match_run_id=x: steer_adapter=steering matches no run"),
    ({"steering_scale": -0.1}, "steering_scale=-0.1: must be at least 0"),
    ({"scale_learning_rate": -1.0}, "scale_learning_rate=-1.0: must be above 0"),
    ({"steering_gradient_clip": -1.0}, "steering_gradient_clip=-1.0: must be at least 0"),
    ({"steering_layers": "one"}, "steering_layers=one: must be all, or numbers of layers, each once"),
    ({"writer": "whisper", "projector": "linear", "decoder_run_id": "none"}, "projector=linear: writer=whisper reads no prompt"),
    ({"decoder_run_id": "none"}, "decoder_run_id is missing: writer=llm needs a language model"),
    ({"steer_experts": 0, "projector": "none"}, "projector=none and steer_experts=0: nothing would train"),
    ({"steer_experts": 1, "steering_unit": "utterance"}, "steering_unit=utterance: steer_experts=1 leaves nothing to choose"),
    ({"steer_experts": 1, "router_learning_rate": 0.1}, "router_learning_rate=0.1: steer_experts=1 leaves nothing to choose"),
    ({"use_layer_scales": False, "scale_learning_rate": 0.1}, "scale_learning_rate=0.1: use_layer_scales=false learns no scales"),
    ({"projector": "none", "steer_learning_rate": 0.1}, "steer_learning_rate=0.1: there is no projector to train"),
    ({"steer_epochs": 0, "steer_batch_size": 4}, "steer_batch_size=4: steer_epochs=0 trains nothing"),
    ({"steer_epochs": 0, "num_workers": 2}, "num_workers=2: steer_epochs=0 trains nothing"),
    (
        {"steer_adapter": "lora", "match_run_id": "x", "steering_unit": "utterance"},
        "steering_unit=utterance: steer_adapter=lora steers nothing",
    ),
    ({"writer": "whisper"}, "decoder_run_id=d: writer=whisper uses no language model"),
]
DECODER_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"prepare_run_id": "p"}, "prepare_run_id=p: the language model base/synthetic-en-decoder is taken as it is"),
    ({"decoder_width": 80}, "decoder_width=80: the language model base/synthetic-en-decoder is taken as it is"),
    ({"init_from": "scratch", "copy_decoder_mb": 1.0}, "copy_decoder_mb=1.0: init_from=scratch: a language model that is made is copied at any size"),
    ({"init_from": "scratch", "llm": "x"}, "llm=x and init_from=scratch: the language model is taken or made, not both"),
    ({"init_from": "scratch", "decoder_heads": 3}, "decoder_heads=3: decoder_width=160 must be an even multiple of it"),
]  # fmt: skip
BETWEEN: list[tuple[dict[str, Any], list[str]]] = [
    ({"steering_layers": "2,7"}, ["steering_layers=2,7: the encoder has layers 1 to 4"]),
    ({"prompt_ms": 100}, ["prompt_ms=100: must be a multiple of 40, the milliseconds of an encoder frame"]),
    ({"projector": "none"}, ["projector=none: the encoder's frames have 144 numbers and the language model reads 160; set projector=linear"]),
    (
        {"max_sequence_tokens": 900, "max_prompt_tokens": 700},
        ["max_prompt_tokens=700: the language model has 512 positions", "max_sequence_tokens=900: the language model has 512 positions"],
    ),
    ({"max_sequence_tokens": 8, "textual_prompt": "write all that you understand of it:"}, ["which leaves no room for text in max_sequence_tokens=8"]),
    ({"writer": "whisper", "steering_layers": "5"}, ["steering_layers=5: the encoder has layers 1 to 4"]),
    ({"init_from": "scratch", "steering_layers": "5", "projector": "none", "decoder_width": 80}, ["steering_layers=5", "144 numbers and the language model reads 80"]),
    ({"writer": "whisper", "llm": "base/synthetic-en-decoder-2"}, ["llm=base/synthetic-en-decoder-2: writer=whisper runs no decoder"]),
]  # fmt: skip


@pytest.mark.parametrize(("document", "name", "default", "step"), ROWS)
def test_each_name_is_an_option_of_its_step_and_of_the_chain(document: str, name: str, default: str, step: str) -> None:
    field = {each.name: each for each in dataclasses.fields(STEPS[step].StepOptions)}[name]
    assert field.default == from_text(default, field.type), document
    assert field.metadata["help"] and (name == "match_run_id" or hasattr(main.StepOptions(), name))


def test_the_table_has_every_option_of_training() -> None:
    named = {name for _, name, _, _ in ROWS}
    assert {field.name for field in dataclasses.fields(SteerTrainingOptions)} <= named


@pytest.mark.parametrize(("changes", "said"), FAULTS)
def test_what_cannot_be_is_refused_in_one_line_before_any_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as fault:
        steer.StepOptions(**IDS | changes)
    assert str(fault.value) == said


@pytest.mark.parametrize(("changes", "said"), DECODER_FAULTS)
def test_a_decoder_that_is_taken_is_not_made(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as fault:
        decoder.StepOptions(**changes)
    assert str(fault.value) == said


@pytest.mark.parametrize(("changes", "said"), BETWEEN)
def test_what_base_language_model_and_options_do_not_agree_on_is_refused_before_the_first_stage(
    changes: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ValueError) as fault:
        main.check_stages(main.StepOptions(systems="steer_moe", register_system="any", **changes))
    assert all(part in str(fault.value) for part in said)


def test_under_the_bases_own_decoder_no_language_model_is_made_or_asked_for() -> None:
    options = main.StepOptions(systems="steer_moe", register_system="any", writer="whisper")
    main.check_stages(options)
    assert [stage.name for stage in stages_of(options)] == ["synthesize", "prepare", "pretrain", "steer_moe"]
    assert stage_options(steer, options, **IDS).decoder_run_id == "none"  # what a run does not read is not given to it


def test_the_preset_holds_document_002s_values_and_is_taken_by_the_chain() -> None:
    values = file_values(main.StepOptions, str(project_root() / "presets" / "steermoe.yaml"))
    options = main.StepOptions(corpus="parquet", dataset_root="x", **values)
    main.check_stages(options)
    step = pending_options(steer, options)
    assert all(getattr(step, name) == value for name, value in values.items() if hasattr(step, name))
    assert (step.steering_learning_rate, step.router_learning_rate, step.steer_batch_size) == (1e-3, 1e-4, 4)


def test_an_unknown_key_is_an_error_and_1e_4_a_number(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("router_learning_rate: 1e-4\n", encoding="utf-8")
    assert file_values(main.StepOptions, str(path)) == {"router_learning_rate": 1e-4}
    path.write_text("steering_learnig_rate: 1e-4\n", encoding="utf-8")
    with pytest.raises(ValueError, match="steering_learnig_rate"):
        file_values(main.StepOptions, str(path))
