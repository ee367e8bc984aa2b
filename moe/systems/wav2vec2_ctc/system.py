"""Wav2Vec2-BERT CTC as a system: characters, written greedily or by beams, with a time and a confidence for every word."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.system import WORDS, Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record
from moe.systems.wav2vec2_ctc.asks import CTCAsk, ask_fault
from moe.systems.wav2vec2_ctc.beams import best_paths, check_beams
from moe.systems.wav2vec2_ctc.decoding import Run, collapse, scores, words
from moe.systems.wav2vec2_ctc.folder import save_model
from moe.systems.wav2vec2_ctc.frames import frames_needed
from moe.systems.wav2vec2_ctc.inputs import CTCInputs
from moe.systems.wav2vec2_ctc.language_model import LanguageModel
from moe.systems.wav2vec2_ctc.masks import Masks
from moe.systems.wav2vec2_ctc.model import CTCModel
from moe.systems.wav2vec2_ctc.vocabulary import BLANK, UNKNOWN, Vocabulary
from moe.training.precision import computing

TITLE = "Wav2Vec2-BERT CTC"
UNKNOWN_CHARACTERS = "unknown_characters"  # of the reference, which no output can write
INFINITE = "infinite_loss"  # whether no path writes the reference: the loss counts as 0, where it counts at all
LORA = re.compile(r"\.(lora|shared)_[AB]$")
PARTS = {"head": "lm_head", "adapter": "wav2vec2_bert.adapter"}  # beside the encoder, by prefix


class CTCSystem:
    """The system; see `moe.system.System`.

    Args:
        missing: names of the network's tensors that no checkpoint provided.
        learning_rate: of everything that trains.

    Attributes:
        language_model: of the train transcripts, which beams ask; None for none.
    """

    ask_type = CTCAsk

    def __init__(
        self,
        module: CTCModel,
        vocabulary: Vocabulary,
        record: Record,
        missing: Sequence[str] = (),
        learning_rate: float = 0.0,
    ) -> None:
        self.module, self.vocabulary, self.record = module, vocabulary, record
        self.missing, self.learning_rate = tuple(missing), learning_rate
        config = module.network.config
        masks = Masks(config.mask_time_prob, config.mask_time_length, config.mask_feature_prob, config.hidden_size)
        self.inputs = CTCInputs(vocabulary, module.frames, masks)
        self.language_model: LanguageModel | None = None

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder, adapter, head and LoRA, as far as they train."""
        parts: dict[str, list[torch.nn.Parameter]] = {"encoder": [], "adapter": [], "head": [], "lora": []}
        for name, parameter in self.module.network.named_parameters():
            if parameter.requires_grad and self.learning_rate:
                parts[part_of(name)].append(parameter)
        return [ParameterGroup(name, tuple(part), self.learning_rate) for name, part in parts.items() if part]

    @torch.no_grad()
    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch; `details` hold words with times and confidences, and what `measures` and evaluation count.

        Raises:
            ValueError: beams are asked for, and their extra is not installed.
        """
        with computing(batch["features"].device, self.module.precision):
            said, routed = self.outputs(batch, ask)  # (B, T', V)
        n_outputs = self.module.frames.n_outputs(batch["n_frames"])  # (B,)
        rows = [row[:length] for row, length in zip(said, n_outputs.tolist(), strict=True)]  # (T'_b, V) each
        paths: list[Tensor | None] = [None] * len(rows)
        if options.beam_size > 1:
            paths = list(best_paths(rows, options.beam_size, self.language_model))
        written = [collapse(row, path) for row, path in zip(rows, paths, strict=True)]
        means, counts = scores(said, n_outputs, [[run.token for run in runs] for runs in written])
        losses = [math.nan] * len(rows)
        if with_loss:
            losses = self.module.losses(said, batch["n_frames"], batch["labels"], batch["n_labels"]).tolist()
        references = [row[:n] for row, n in zip(batch["labels"].tolist(), batch["n_labels"].tolist(), strict=True)]
        values = zip(batch["utterance_ids"], rows, written, losses, means, counts, references, strict=True)
        return [dataclasses.replace(self._hypothesis(*each), **given) for each, given in zip(values, routed, strict=True)]

    def outputs(self, batch: Batch, ask: Ask) -> tuple[Tensor, list[dict[str, Any]]]:
        """Log-probabilities (B, T', V), and what each utterance's hypothesis is to say of its routing: nothing here."""
        return self.module.log_probabilities(batch["features"], batch["n_frames"]), [{} for _ in batch["utterance_ids"]]

    @property
    def n_experts(self) -> int:
        """Routed experts; 0 without."""
        return self.module.n_experts

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Refuse more experts than there are, and beams without their extra.

        Raises:
            ValueError: naming what is allowed.
        """
        if fault := ask_fault(ask.part(CTCAsk), self.n_experts, self.record.title):
            raise ValueError(fault)
        check_beams(beam_size)

    def ablations(self) -> dict[str, Ask]:
        """None: there is nothing to route."""
        return {}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """The share of blank outputs, near 1 while a CTC writes nothing yet; the references whose loss would be infinite."""
        return {
            "blank_share": float(np.mean([hypothesis.details["blank_share"] for hypothesis in hypotheses])),
            "infinite_losses": float(sum(hypothesis.details[INFINITE] for hypothesis in hypotheses)),
        }

    def describe(self) -> dict[str, str]:
        """Outputs, vocabulary and search."""
        lm = self.language_model
        return {
            "output": f"one of {len(self.vocabulary)} tokens every {1000 * self.module.frames.output_s:g} ms",
            "decoding": "greedy, or beams" + (f" with a character {lm.order}-gram model" if lm else ""),
        }

    def place(self, device: torch.device | str, precision: str) -> None:
        """Move the network to a device and compute there in a precision."""
        self.module.to(device).use_precision(precision)

    def save(self, folder: Path) -> None:
        """Network, adapters, vocabulary and record."""
        save_model(folder, self.module, self.vocabulary, self.language_model, self.record)

    def _hypothesis(
        self, name: str, said: Tensor, runs: Sequence[Run], loss: float, mean: float, n_tokens: int, reference: Sequence[int]
    ) -> Hypothesis:
        found = words(runs, self.vocabulary, self.module.frames.output_s)
        blank_share = float((said.argmax(-1) == BLANK).float().mean())
        details = {
            WORDS: [dataclasses.asdict(word) for word in found],
            "blank_share": blank_share,
            UNKNOWN_CHARACTERS: reference.count(UNKNOWN),
            INFINITE: frames_needed(reference) > len(said),
        }
        text = " ".join(word.word for word in found)
        return Hypothesis(name, text, utterance_loss=loss, mean_logprob=mean, n_tokens=n_tokens, details=details)


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to: encoder, adapter, head, or the LoRA on any of them."""
    if LORA.search(name):
        return "lora"
    return next((part for part, prefix in PARTS.items() if name.startswith(f"{prefix}.")), "encoder")
