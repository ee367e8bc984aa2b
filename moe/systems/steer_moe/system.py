"""SteerMoE as a system: built, decoded, measured, saved and read back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from moe.files import write_whole_dir
from moe.system import Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record, read_record, write_record
from moe.systems.steer_moe.asks import OTHER_WAYS, OtherWay, SteerAsk
from moe.systems.steer_moe.decoder import DecoderRecord
from moe.systems.steer_moe.inputs import PROMPT_COLUMN, SteerInputs
from moe.systems.steer_moe.measurements import Use, measures, use_of
from moe.systems.steer_moe.model import SteeredWriter
from moe.systems.steer_moe.options import LORA, WHISPER, SteerModelOptions
from moe.systems.steer_moe.parts import BASE_DIR, DECODER_DIR, Sources, assemble
from moe.systems.steer_moe.sequence import AFTER, padded, with_prompts
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.search import most_new_tokens
from moe.text.normalisers import normalise
from moe.training.precision import computing

NAME, TITLE = "steer_moe", "SteerMoE"
TRAINED = "trained.safetensors"
MOST_TOLD = 0.5  # of them that may hold their reference: "answer yes or no" holds a short one by chance


class SteerSystem:
    """The system; see `moe.system.System`.

    Args:
        sources: the folders of base and language model.
        tokenizer: of what writes.
        rates: learning rate of each group: vectors, scales, routers, projector.
    """

    ask_type = SteerAsk

    def __init__(
        self,
        module: SteeredWriter,
        inputs: SteerInputs | WhisperInputs,
        tokenizer: PreTrainedTokenizerBase,
        record: Record,
        sources: Sources,
        decoder: DecoderRecord | None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.module, self.inputs, self.tokenizer, self.record = module, inputs, tokenizer, record
        self.sources, self.decoder, self.rates = sources, decoder, rates or {}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Vectors, scales, routers and projector, each at its own rate; a LoRA in place of steering at the projector's."""
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in ("vectors", "scales", "routers", "projector", "lora")}
        for name, parameter in self.trained().items():
            leaf = name.rpartition(".")[2]
            groups[leaf if "steering." in name else "projector" if name.startswith("prompt.") else "lora"].append(parameter)
        rates = {**self.rates, "lora": self.rates["projector"]} if self.rates else {}
        return [ParameterGroup(name, tuple(group), rates[name]) for name, group in groups.items() if group and rates]

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name: the whole of what a checkpoint holds."""
        return {name: each for name, each in self.module.named_parameters() if each.requires_grad}

    @torch.no_grad()
    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch; `details` hold what each steered layer did."""
        way = ask if isinstance(ask, OtherWay) else OtherWay()
        batch = with_prompts(_others(batch) if way.other_audio else batch)
        with computing(self.module.device, self.module.precision):
            encoded = self.module.encode(batch["mel"], batch["n_frames"], way.routing)
            texts = self.module.write(encoded, batch, self._limit(batch, options), options.beam_size)
            losses = self.module.losses(encoded, batch).tolist() if with_loss else [math.nan] * len(texts.tokens)
        use = use_of(encoded) if encoded.passes else None
        details = [use.details(row) if use else {} for row in range(len(losses))]
        said = [str(self.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in texts.tokens]
        values = zip(batch["utterance_ids"], said, losses, texts.means, texts.counts, details, strict=True)
        return [Hypothesis(name, text, None, loss, mean, n, None, found) for name, text, loss, mean, n, found in values]

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Nothing can be asked, so nothing is refused here."""

    def ablations(self) -> dict[str, Ask]:
        """Other routings where a router decides, steering off where there is any, and the audio of another utterance."""
        steering = self.module.encoder.steering
        left_out = set() if steering is not None and steering.routers is not None else {"uniform", "shuffled"}
        left_out |= {"off"} if steering is None else set()
        return {name: way for name, way in OTHER_WAYS.items() if name not in left_out}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """What each steered layer did; empty without steering."""
        steering = self.module.encoder.steering
        return {} if steering is None else measures(steering, Use.of_hypotheses(hypotheses))

    def describe(self) -> dict[str, str]:
        """How it is steered, what writes, and what a server must have."""
        steering = self.module.encoder.steering
        found = {"steering": "none"}
        if steering is not None:
            layers = ", ".join(map(str, steering.layers))
            found = {"steering": f"{steering.n_experts} vectors after each of the encoder layers {layers}"}
        if self.decoder is None:
            return found | {"writer": "the base's own decoder"}
        return found | {"writer": f"the language model {self.decoder.name}"}

    def needs(self) -> str | None:
        """The language model, where it was not copied.

        Raises:
            ValueError: no server could get it.
        """
        return self.decoder.needs if self.decoder else None

    def from_manifest(self, rows: pd.DataFrame) -> Mapping[str, np.ndarray]:
        """What follows the audio prompt of utterances with a textual prompt of their own, (N, n) codes; nothing where none has one.

        Raises:
            ValueError: the prompts are the sentences that were to be read.
        """
        if PROMPT_COLUMN not in rows or not isinstance(self.inputs, SteerInputs):
            return {}
        if fault := _told(rows):
            raise ValueError(fault)
        given = [prompt if isinstance(prompt, str) and prompt else None for prompt in rows[PROMPT_COLUMN]]
        after = [self.inputs.around(prompt).after for prompt in given]
        return {AFTER: padded(after).numpy()}

    def place(self, device: torch.device | str, precision: str) -> None:
        """Move the model to a device and compute there in a precision."""
        self.module.to(device).use_precision(precision)

    def save(self, folder: Path) -> None:
        """Record, what trained, the base, and the language model or its name."""
        with write_whole_dir(folder) as aside:
            self.sources.copy(aside)
            save_file({name: each.detach().contiguous() for name, each in self.trained().items()}, aside / TRAINED)
            write_record(aside, self.record)

    def _limit(self, batch: Batch, options: DecodingOptions) -> int:
        """Most new tokens: the same for all utterances of a length bucket, and no more than the language model has room for."""
        whisper = self.inputs.whisper if isinstance(self.inputs, SteerInputs) else self.inputs
        wanted = most_new_tokens(whisper, int(batch["n_frames"].max()), options)
        if not isinstance(self.inputs, SteerInputs):
            return wanted
        room: int = self.inputs.limits.sequence - batch["opening"].shape[1]
        return max(1, min(wanted, self.inputs.limits.text, room))


def build(
    sources: Sources,
    options: SteerModelOptions,
    context: AudioContextOptions,
    language: str,
    normaliser: str,
    rates: Mapping[str, float] | None = None,
    lora_rank: int = 0,
    balance: float = 0.0,
) -> SteerSystem:
    """An untrained one; what it draws comes from torch's generator.

    Args:
        lora_rank: of steer_adapter=lora. balance: weight of the balance loss.

    Raises:
        ValueError: base, language model and options do not go together.
    """
    shape = {"options": dataclasses.asdict(options), "context": dataclasses.asdict(context), "lora_rank": lora_rank}
    parts = assemble(sources, options, context, language, lora_rank, balance)
    record = Record(NAME, title(options), "candidate", language, normaliser, shape=shape)
    return SteerSystem(parts.module, parts.inputs, parts.tokenizer, record, sources, parts.decoder, rates)


def title(options: SteerModelOptions) -> str:
    """What tables call it, controls apart from one another."""
    steered = {0: "projector alone", 1: "one static vector"}.get(options.steer_experts)
    how = "encoder LoRA" if options.steer_adapter == LORA else steered
    if options.writer == WHISPER:
        return f"steered Whisper{f', {how}' if how else ''}"
    return f"{TITLE}{f', {how}' if how else ''}"


def load(folder: Path) -> SteerSystem:
    """A saved one.

    Raises:
        ValueError: the folder holds no whole one, or its language model is not the one that it was trained with.
    """
    folder = Path(folder)
    record = read_record(folder)
    for name in (BASE_DIR, TRAINED):
        if not (folder / name).exists():
            raise ValueError(f"{folder} holds no whole recogniser: {name} is missing")
    options = SteerModelOptions(**record.shape["options"])
    sources = Sources(folder / BASE_DIR, folder / DECODER_DIR if options.writer != WHISPER else None)
    context, rank = AudioContextOptions(**record.shape["context"]), record.shape["lora_rank"]
    system = build(sources, options, context, record.language, record.normaliser, None, rank)
    system.record = record
    weights, wanted = load_file(folder / TRAINED), system.trained()
    if set(weights) != set(wanted):
        raise ValueError(f"{folder}: {TRAINED} holds {', '.join(sorted(weights))}, the model has {', '.join(sorted(wanted))}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
    system.module.eval()
    return system


def _told(rows: pd.DataFrame) -> str | None:
    """Why the prompts of a corpus would tell the language model what it is to recognise; None where they do not."""
    given = [
        (normalise("basic", prompt), normalise("basic", reference))
        for prompt, reference in zip(rows[PROMPT_COLUMN], rows["reference"], strict=True)
        if isinstance(prompt, str) and prompt and reference
    ]
    n_told = sum(f" {reference} " in f" {prompt} " for prompt, reference in given)
    if n_told <= MOST_TOLD * len(given):
        return None
    return (
        f"the corpus's column {PROMPT_COLUMN}: {n_told} of {len(given)} textual prompts hold the reference of their utterance; "
        f"rename the column, unless it is an instruction"
    )


def _others(batch: Batch) -> Batch:
    """The batch with the audio of the next utterance; an utterance that is alone gets its own, played backwards."""
    if len(batch["mel"]) == 1:
        mel, n_frames = batch["mel"], int(batch["n_frames"])
        return {**batch, "mel": torch.cat([mel[..., :n_frames].flip(-1), mel[..., n_frames:]], -1)}
    moved: Batch = {name: batch[name].roll(1, 0) for name in ("mel", "n_frames", "opening", AFTER) if name in batch}
    return {**batch, **moved}
