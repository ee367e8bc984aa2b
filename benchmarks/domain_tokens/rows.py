"""The trainings that are measured, by corpus and name: what each changes."""

import dataclasses
from typing import Any

from benchmarks.domain_tokens.corpora import DEMO, RULE, WITH, WITHOUT
from moe.options import option
from moe.systems.domain_whisper.domains import DomainOptions
from moe.systems.domain_whisper.options import DomainTrainingOptions
from moe.systems.domain_whisper.unfreezing import UnfreezeOptions


@dataclasses.dataclass(frozen=True)
class RowOptions(DomainOptions, UnfreezeOptions, DomainTrainingOptions):
    """One training, or none."""

    trains: bool = option(True, "false scores the base model, which a system without training and without token is")


RULED = {"domains": f"{WITH},{WITHOUT}", "domain_epochs": 4, "domain_learning_rate": 5e-4, "token_learning_rate": 1e-2}
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    RULE: {
        "blocks": RULED,
        "LoRA": RULED | {"unfreeze": "lora"},
        "rows alone": RULED | {"unfreeze": "none", "token_learning_rate": 0.05},
    },
    DEMO: {
        "base model": {"trains": False},
        "two domains": {},
        "no tokens": {"token_dropout": 1.0},
        "each etiology": {"domains": "each"},
        "last 2/2 blocks": {"unfreeze_encoder_blocks": 2, "unfreeze_decoder_blocks": 2},
        "last 2/2 blocks, no tokens": {"unfreeze_encoder_blocks": 2, "unfreeze_decoder_blocks": 2, "token_dropout": 1.0},
        "whole model": {"unfreeze": "all"},
        "LoRA of the same size": {"unfreeze": "lora"},
        "rows alone": {"unfreeze": "none", "token_learning_rate": 0.05},
        "rows ten times as fast": {"token_learning_rate": 1e-2},
        "rows a tenth as fast": {"token_learning_rate": 1e-4},
        "rows from their words": {"token_init": "words"},
        "rows from the mean": {"token_init": "mean"},
        "token dropout 0": {"token_dropout": 0.0},
        "token dropout 0.3": {"token_dropout": 0.3},
        "blocks at 3e-4": {"domain_learning_rate": 3e-4},
        "blocks at 2e-3": {"domain_learning_rate": 2e-3},
        "place of no timestamps": {"token_place": "no_timestamps"},
    },
}
