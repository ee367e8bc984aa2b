"""A domain-token Whisper of a few thousand parameters over the toy corpus of chords: its domains are als and typical."""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from moe.experts.routed_lora import routed_layers
from moe.routing.gate import Gate, GateConfig
from moe.systems.domain_whisper.domains import Domains
from moe.systems.domain_whisper.folder import DomainShape
from moe.systems.domain_whisper.options import LossOptions, TokenOptions
from moe.systems.domain_whisper.system import DomainSystem, build
from moe.systems.domain_whisper.unfreezing import UnfreezeOptions
from moe.systems.whisper.base_model import BaseModel, load_base, save_base
from tests.toys.models import CONTEXT, shared_base

DOMAINS = Domains(("als", "typical"), ("typical",))
RATES = (1e-2, 1e-2)


def toy_domain(
    folder: Path,
    unfreezing: UnfreezeOptions = UnfreezeOptions(),
    tokens: TokenOptions = TokenOptions(),
    losses: LossOptions = LossOptions(),
    n_timestamps: int = 0,
    **shape: Any,
) -> DomainSystem:
    """One on the toy base, which is saved in `folder`; its rows differ enough to be seen, and its classifier has a mind.

    Args:
        n_timestamps: tokens of timestamps above the no-timestamps token, as the vocabularies of the hub have them.
    """
    save_base(_with_timestamps(shared_base(**shape), n_timestamps), folder)
    made = DomainShape(DOMAINS, tokens.token_place, tokens.domain_confidence, unfreezing, CONTEXT)
    torch.manual_seed(3)
    system = build(load_base(str(folder)), folder, made, "en", "basic", tokens, losses, RATES)
    torch.nn.init.normal_(system.module.rows, std=0.5)
    for _, layer in routed_layers(system.module.base):
        torch.nn.init.normal_(layer.shared_B.data, std=0.1)
    classifier = Gate(GateConfig(2 * system.module.base.config.d_model, len(DOMAINS.names)), seed=3)
    torch.nn.init.normal_(classifier.output.weight, std=0.3)
    system.classifier = classifier.eval()
    system.module.eval()
    return system


def _with_timestamps(base: BaseModel, n: int) -> BaseModel:
    """A copy with these tokens."""
    copied = BaseModel(copy.deepcopy(base.model), copy.deepcopy(base.processor))
    tokenizer = copied.processor.tokenizer
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * number:.2f}|>", special=True) for number in range(n)], special_tokens=True)
    copied.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return copied
