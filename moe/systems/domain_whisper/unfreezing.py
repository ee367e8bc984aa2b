"""What of a Whisper trains beside the rows of its domain tokens: last blocks, LoRA, everything or nothing; and at which rate."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from moe.experts.routed_lora import ALL_LINEARS, AdapterOptions, matched_rank
from moe.options import Options, listed, option, to_text
from moe.system import ParameterGroup
from moe.systems.whisper.base_source import TOKEN_TABLE, is_from_scratch

BLOCKS, LORA, ALL, ROWS_ALONE = "blocks", "lora", "all", "none"
N_BLOCKS = 4  # document 003's
PARTS = {"attention": ("self_attn", "encoder_attn"), "mlp": ("fc1", "fc2", "final_layer_norm")}  # of a decoder block, by prefix
LAYERS = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(\w+)")
FIXED = (TOKEN_TABLE, "model.encoder.embed_positions.weight")  # tied to the head; a sinusoid
SMALL_RATE, LOADED_RATE = 1e-3, 1e-4  # the first one's training loss rises above a real Whisper's weights


@dataclasses.dataclass(frozen=True)
class UnfreezeOptions(Options):
    """What trains beside the tokens' rows."""

    group = "domain"

    unfreeze: str = option(
        BLOCKS,
        "what trains beside the tokens' rows: last blocks, LoRA on all, all, or none",
        choices=(BLOCKS, LORA, ALL, ROWS_ALONE),
    )
    unfreeze_encoder_blocks: int | None = option(None, "last encoder blocks that train (none: 4, or all of fewer)", low=0)
    unfreeze_decoder_blocks: int | None = option(None, "last decoder blocks that train (none: 4, or all of fewer)", low=0)
    decoder_parts: str = option("attention,mlp", "parts of those decoder blocks that train, each with its norm")
    layer_decay: float = option(1.0, "the learning rate of a block is that of the block above times this", above=0, high=1)
    domain_lora_r: int | None = option(None, "rank of the LoRA (none: as many parameters as the last blocks have)", low=1)
    dropout: float | None = option(None, "dropout of the whole model in training (none: the checkpoint's)", low=0, high=0.9)

    def faults(self) -> list[str]:
        """Parts that a block has not."""
        parts = listed(self.decoder_parts)
        bad = [part for part in parts if part not in PARTS] or ([] if parts else ["nothing"])
        return [f"decoder_parts={self.decoder_parts}: {', '.join(bad)}: there are {', '.join(PARTS)}"] if bad else []

    def idle(self) -> dict[str, str]:
        """What says how much of something trains that does not."""
        blocks = ["unfreeze_encoder_blocks", "unfreeze_decoder_blocks", "decoder_parts"]
        names = ["layer_decay"] if self.unfreeze != BLOCKS else []
        names += blocks if self.unfreeze in (ALL, ROWS_ALONE) or (self.unfreeze == LORA and self.domain_lora_r) else []
        names += ["domain_lora_r"] if self.unfreeze != LORA else []
        no_blocks = {"decoder_parts": "unfreeze_decoder_blocks=0 trains none"} if self.unfreeze_decoder_blocks == 0 else {}
        return no_blocks | dict.fromkeys(names, f"unfreeze={self.unfreeze} does not read it")

    def n_blocks(self, config: WhisperConfig) -> dict[str, int]:
        """Blocks of encoder and decoder that train.

        Raises:
            ValueError: more than the model has.
        """
        if faults := self.block_faults(config):
            raise ValueError("; ".join(faults))
        asked, there = self._asked, _blocks(config)
        return {part: min(N_BLOCKS, there[part]) if n is None else n for part, n in asked.items()}

    def block_faults(self, config: WhisperConfig) -> list[str]:
        """More blocks than a model of this config has."""
        asked = {part: n for part, n in self._asked.items() if n is not None}
        there = _blocks(config)
        return [f"unfreeze_{part}_blocks={n}: the base has {there[part]}" for part, n in asked.items() if n > there[part]]

    @property
    def _asked(self) -> dict[str, int | None]:
        return {"encoder": self.unfreeze_encoder_blocks, "decoder": self.unfreeze_decoder_blocks}


def usual_learning_rate(unfreeze: str, base: Mapping[str, Any]) -> float:
    """The learning rate beside the tokens' rows where none is given.

    Args:
        base: how the base model was made (`read_training_record`).
    """
    return SMALL_RATE if unfreeze == LORA or is_from_scratch(base) else LOADED_RATE


def _blocks(config: WhisperConfig) -> dict[str, int]:
    return {"encoder": config.encoder_layers, "decoder": config.decoder_layers}


def depths(model: WhisperForConditionalGeneration, options: UnfreezeOptions) -> dict[str, int]:
    """The parameters of the last blocks, by name, each with the number of blocks above its own."""
    n_blocks, parts = options.n_blocks(model.config), [prefix for part in listed(options.decoder_parts) for prefix in PARTS[part]]
    there, found = _blocks(model.config), {}
    for name, _ in model.named_parameters():
        if match := LAYERS.match(name):
            side, depth = match[1], there[match[1]] - 1 - int(match[2])
            if depth < n_blocks[side] and (side == "encoder" or match[3].startswith(tuple(parts))):
                found[name] = depth
    return found


def lora_options(model: WhisperForConditionalGeneration, options: UnfreezeOptions) -> AdapterOptions:
    """One LoRA on all linear layers; of the rank asked for, or as large as the blocks that it stands for."""
    adapters = AdapterOptions(lora_targets=ALL_LINEARS)
    parameters = dict(model.named_parameters())
    n_blocks = sum(parameters[name].numel() for name in depths(model, options))
    rank = options.domain_lora_r or matched_rank(model, adapters, n_blocks)
    return AdapterOptions(lora_r=rank, shared_r=rank, lora_alpha=2.0 * rank, lora_targets=ALL_LINEARS)


def unfreeze(model: WhisperForConditionalGeneration, options: UnfreezeOptions) -> None:
    """Let train what the options say and nothing else; a LoRA is attached after this."""
    chosen = depths(model, options) if options.unfreeze == BLOCKS else {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or (options.unfreeze == ALL and name not in FIXED))


def groups(
    model: WhisperForConditionalGeneration, rows: nn.Parameter, options: UnfreezeOptions, rate: float, token_rate: float
) -> list[ParameterGroup]:
    """What trains at which rate: the rows, then each depth of encoder and decoder, the top first, or the adapter, or all."""
    found: dict[tuple[str, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            match = LAYERS.match(name) if options.unfreeze == BLOCKS else None
            side = name.split(".")[1] if options.unfreeze != LORA else "adapter"
            depth = getattr(model.config, f"{match[1]}_layers") - 1 - int(match[2]) if match else 0
            found.setdefault((side, depth), []).append(parameter)
    decayed = options.layer_decay if options.unfreeze == BLOCKS else 1.0
    parts = [
        ParameterGroup(_group_name(*key, options), tuple(part), rate * decayed ** key[1]) for key, part in sorted(found.items())
    ]
    return [ParameterGroup("domain_tokens", (rows,), token_rate), *parts]


def _group_name(side: str, depth: int, options: UnfreezeOptions) -> str:
    return f"{side}_block_{depth + 1}_from_the_top" if options.unfreeze == BLOCKS else side


def describe(options: UnfreezeOptions, config: WhisperConfig) -> str:
    """What trains, in words."""
    n_blocks = options.n_blocks(config)
    words = {
        BLOCKS: f"the last {n_blocks['encoder']} encoder and {n_blocks['decoder']} decoder blocks",
        LORA: f"a LoRA (domain_lora_r={to_text(options.domain_lora_r)})",
        ALL: "everything but the token table",
    }
    return f"the rows of the tokens {'and ' + words[options.unfreeze] if options.unfreeze in words else 'alone'}"
