"""Wav2Vec2-BERT CTC as a system: characters, written greedily, with a time and a confidence for every word."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2BertForCTC

from moe.files import write_whole_dir
from moe.options import Options
from moe.system import WORDS, Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record, read_record, write_record
from moe.systems.wav2vec2_ctc.decoding import Run, collapse, scores, words
from moe.systems.wav2vec2_ctc.inputs import CTCInputs
from moe.systems.wav2vec2_ctc.model import CTCModel, new_network
from moe.systems.wav2vec2_ctc.options import CTCModelOptions
from moe.systems.wav2vec2_ctc.vocabulary import BLANK, Vocabulary
from moe.training.precision import computing

NAME, TITLE = "wav2vec2_ctc", "Wav2Vec2-BERT CTC"
NETWORK_DIR, VOCABULARY = "network", "vocab.json"
PARTS = {"head": "lm_head", "adapter": "wav2vec2_bert.adapter"}  # beside the encoder, by prefix


@dataclasses.dataclass(frozen=True)
class CTCAsk(Options):
    """What a request may ask of a CTC: nothing."""


class CTCSystem:
    """The system; see `moe.system.System`.

    Args:
        missing: names of the network's tensors that no checkpoint provided.
        learning_rate: of everything that trains.
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
        self.inputs = CTCInputs(vocabulary, module.frames, config.mask_time_prob, config.mask_time_length)
        self.precision = "fp32"

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder, adapter and head, as far as they train."""
        parts: dict[str, list[torch.nn.Parameter]] = {"encoder": [], "adapter": [], "head": []}
        for name, parameter in self.module.network.named_parameters():
            if parameter.requires_grad and self.learning_rate:
                parts[part_of(name)].append(parameter)
        return [ParameterGroup(name, tuple(part), self.learning_rate) for name, part in parts.items() if part]

    @torch.no_grad()
    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch; `details` hold its words with times and confidences, and the share of blank outputs.

        Raises:
            ValueError: beams are asked for.
        """
        if options.beam_size > 1:
            raise ValueError(f"beam_size={options.beam_size}: {TITLE} decodes greedily; set beam_size=1")
        with computing(batch["features"].device, self.precision):
            said = self.module.log_probabilities(batch["features"], batch["n_frames"])  # (B, T', V)
        n_outputs = self.module.frames.n_outputs(batch["n_frames"])  # (B,)
        rows = [row[:length] for row, length in zip(said, n_outputs.tolist(), strict=True)]  # (T'_b, V) each
        written = [collapse(row) for row in rows]
        means, counts = scores(said, n_outputs, [[run.token for run in runs] for runs in written])
        losses = [math.nan] * len(rows)
        if with_loss:
            losses = self.module.losses(said, batch["n_frames"], batch["labels"], batch["n_labels"]).tolist()
        values = zip(batch["utterance_ids"], rows, written, losses, means, counts, strict=True)
        return [self._hypothesis(*each) for each in values]

    def check(self, ask: Ask) -> None:
        """Nothing can be asked, so nothing is refused here."""

    def ablations(self) -> dict[str, Ask]:
        """None: there is nothing to route."""
        return {}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """The share of blank outputs: near 1 while a CTC writes nothing yet."""
        return {"blank_share": float(np.mean([hypothesis.details["blank_share"] for hypothesis in hypotheses]))}

    def describe(self) -> dict[str, str]:
        """Outputs, vocabulary and search."""
        return {
            "output": f"one of {len(self.vocabulary)} tokens every {1000 * self.module.frames.output_s:g} ms",
            "decoding": "greedy",
        }

    def place(self, device: torch.device | str, precision: str) -> None:
        """Move the network to a device and compute there in a precision."""
        self.module.to(device)
        self.precision = precision

    def save(self, folder: Path) -> None:
        """Network, vocabulary and record."""
        with write_whole_dir(folder) as aside:
            self.module.network.save_pretrained(aside / NETWORK_DIR)
            self.vocabulary.save(aside / VOCABULARY)
            write_record(aside, self.record)

    def _hypothesis(self, name: str, said: Tensor, runs: Sequence[Run], loss: float, mean: float, n_tokens: int) -> Hypothesis:
        found = words(runs, self.vocabulary, self.module.frames.output_s)
        blank_share = float((said.argmax(-1) == BLANK).float().mean())
        details = {WORDS: [dataclasses.asdict(word) for word in found], "blank_share": blank_share}
        text = " ".join(word.word for word in found)
        return Hypothesis(name, text, utterance_loss=loss, mean_logprob=mean, n_tokens=n_tokens, details=details)


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to: encoder, adapter or head."""
    return next((part for part, prefix in PARTS.items() if name.startswith(f"{prefix}.")), "encoder")


def build(
    options: CTCModelOptions, vocabulary: Vocabulary, language: str, normaliser: str, learning_rate: float = 0.0
) -> CTCSystem:
    """An untrained one; what it draws comes from torch's generator.

    Raises:
        ValueError: a checkpoint that cannot be taken.
    """
    made = new_network(options, len(vocabulary))
    record = Record(NAME, TITLE, "candidate", language, normaliser, shape={"ctc_model": options.ctc_model})
    return CTCSystem(CTCModel(made.network), vocabulary, record, made.missing, learning_rate)


def load(folder: Path) -> CTCSystem:
    """A saved one.

    Raises:
        ValueError: the folder holds no whole one.
    """
    folder = Path(folder)
    record = read_record(folder)
    for name in (NETWORK_DIR, VOCABULARY):  # without the folder its name would be looked for on a hub
        if not (folder / name).exists():
            raise ValueError(f"{folder} holds no whole recogniser: {name} is missing")
    network = Wav2Vec2BertForCTC.from_pretrained(folder / NETWORK_DIR, dtype=torch.float32)
    return CTCSystem(CTCModel(network.eval()), Vocabulary.load(folder / VOCABULARY), record)
