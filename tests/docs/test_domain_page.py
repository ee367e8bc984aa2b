"""The table of document 003's flags in docs/domain-whisper.md: what stands for each is an option, and a flag of another name is refused with it."""

import re
from pathlib import Path

import pytest

from moe.options import names_of
from steps import main
from steps.options.command_line import unknown
from steps.options.document_names import FOLLOWS
from steps.options.option_files import read_option_file

ROOT = Path(__file__).parents[2]
QUOTED = re.compile(r"`([\w-]+)(?:=[^`]*)?`")
ROWS = [
    tuple(cell.strip() for cell in line.split("|")[1:3])
    for line in (ROOT / "docs" / "domain-whisper.md").read_text(encoding="utf-8").partition("| document | here |")[2].splitlines()
    if line.startswith("| ") and "---" not in line
]
FLAGS = {flag: QUOTED.findall(here) for document, here in ROWS for flag in QUOTED.findall(document) if flag.startswith("--")}
PROMISED = """dataset-root target-sr samples-per-shard base-model run-name output-dir learning-rate num-train-epochs
per-device-train-batch-size grad-accum warmup-steps lr-scheduler-type eval-steps save-steps save-total-limit bf16 num-workers
persistent-workers gradient_checkpointing login-wandb login-hf seed logging-steps remove-unused-columns normal-val-holdout-shards
dyslexic-oversample-factor balance-domains use-loss-weighting dyslexic-loss-weight domain"""


def test_the_table_has_every_flag_of_the_document_and_names_options() -> None:
    assert set(FLAGS) == {f"--{flag}" for flag in PROMISED.split()}
    options = set(names_of(main.StepOptions))
    no_options = {"tensorboard", "korean_plain", "evaluate", "transcribe", "model"}  # values, steps, and the artifact
    assert {name for _, here in ROWS for name in QUOTED.findall(here)} - no_options <= options


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_of_another_name_is_refused_with_ours_or_with_the_reason(flag: str) -> None:
    options, name = names_of(main.StepOptions), flag.removeprefix("--")
    if name in options:
        return
    said, ours = unknown(name, options), FLAGS[flag]
    assert "no such option" in said
    if ours:
        assert any(re.search(rf"\b{each}\b", said) for each in ours), said
    else:
        assert FOLLOWS[name.replace("-", "_")] in said


def test_the_preset_holds_the_documents_values() -> None:
    """Where its text and its code differ, the text's."""
    preset = read_option_file(str(ROOT / "presets" / "document-003.yaml"))
    wanted = {
        "target_sr": "16000", "samples_per_shard": "1000", "domain_learning_rate": "1e-4", "domain_epochs": "100", "domain_batch_size": "8",
        "gradient_accumulation_steps": "4", "warmup_steps": "2000", "lr_scheduler_type": "cosine", "eval_every_n_updates": "1000",
        "save_every_n_updates": "1000", "keep_checkpoints": "3", "num_workers": "24", "persistent_workers": "true", "fp16": "true",
        "logging_steps": "500", "unfreeze_encoder_blocks": "4", "unfreeze_decoder_blocks": "4", "decoder_parts": "attention,mlp",
        "label_smoothing": "0.1", "whisper_model": "v3", "domains": "normal,dyslexic", "corpus": "webdataset", "language": "ko",
    }  # fmt: skip
    assert {name: preset[name] for name in wanted} == wanted
