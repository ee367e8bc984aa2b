"""SteerMoE as one module: a frozen Whisper encodes, its frames are steered and projected, a frozen language model writes."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from moe.system import Batch
from moe.systems.steer_moe.audio_prompt import AudioPrompt
from moe.systems.steer_moe.encoder import SteeredEncoder
from moe.systems.steer_moe.language_model import generate, utterance_losses, written_scores
from moe.systems.steer_moe.sequence import AFTER, unpadded, with_prompts
from moe.systems.steer_moe.steering import ROUTER, LayerPass, balance_loss, use_sums
from moe.training.precision import hold_frozen
from moe.training.processes import mean_of_batch

DROPOUTS = {"dropout", "activation_dropout"}  # rates that some layers apply by their own flag, which recomputing needs set


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An encoded batch.

    Attributes:
        states: frames, (B, T, D). valid: those that hold audio, (B, T).
        passes: what each steered layer did, the lowest first.
        utterance_ids: (B,), where they are known.
    """

    states: Tensor
    valid: Tensor
    passes: tuple[LayerPass, ...]
    utterance_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Texts:
    """Token ids that were written of each utterance without their end; mean log-probability and number of them, the end included."""

    tokens: list[list[int]]
    means: list[float]
    counts: list[int]


class SteeredWriter(nn.Module, abc.ABC):
    """A steered encoder and something frozen that writes what it encodes.

    Args:
        balance: weight of the loss that pulls the use of each layer's vectors to uniform.

    Attributes:
        seen: batches of an update that is watched. used: weights of the vectors in those that it gathered so far, (L, E).
    """

    accepts_loss_kwargs = False  # the Trainer would otherwise multiply the loss by the accumulation steps

    def __init__(self, encoder: SteeredEncoder, balance: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.balance = encoder, balance
        self.precision, self.watched, self.seen = "fp32", False, list[Encoded]()
        self.used: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @property
    def keeps(self) -> bool:
        """Whether a training forward needs what the layers did."""
        return self.watched or self.balance > 0

    def encode(self, mel: Tensor, n_frames: Tensor, routing: str = ROUTER, keeps: bool = True) -> Encoded:
        """Run the encoder: mel (B, n_mels, F), n_frames (B,); `keeps` what its layers did."""
        passes: list[LayerPass] = []
        states, valid = self.encoder(mel, n_frames, routing, passes if keeps else None)
        return Encoded(states, valid, tuple(passes))

    @property
    @abc.abstractmethod
    def writer(self) -> nn.Module:
        """What writes."""

    @abc.abstractmethod
    def losses(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Mean loss of the labels of each utterance, (B,)."""

    @abc.abstractmethod
    def write(self, encoded: Encoded, batch: Batch, max_new_tokens: int, num_beams: int) -> Texts:
        """Texts of an encoded batch, greedy or by beams."""

    def train(self, mode: bool = True) -> Self:
        """Training mode for what trains; what is frozen never drops anything."""
        super().train(mode)
        self.encoder.train(mode)  # last: what writes may hold the same encoder
        self.writer.eval()
        for module in self.writer.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode  # its own flag alone: it recomputes in training, and its parts still drop nothing
        return self

    def enable_checkpointing(self) -> None:
        """Recompute activations of the encoder and of what writes in backward."""
        self.encoder.checkpoints = True
        for module in self.writer.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = True
                vars(module)["_gradient_checkpointing_func"] = _recomputed
                vars(module).update(dict.fromkeys(DROPOUTS & vars(module).keys(), 0.0))

    def use_precision(self, name: str) -> Self:
        """Compute in `fp32`, `bf16` or `fp16` from now on, and hold the frozen matrices in it; what trains stays float32."""
        self.precision = name
        hold_frozen(self, name)
        return self

    def outputs(self, encoded: Encoded, losses: Tensor, utterance_ids: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of a training forward: losses (B,), and what balance costs; what the layers did is kept where it is watched."""
        loss = mean_of_batch(losses.mean(), len(losses))
        if self.balance and encoded.passes:
            sums = use_sums(encoded.passes, encoded.valid)
            loss = loss + self.balance * balance_loss(sums, self.used)
            if self.training:
                self.used = sums.detach() if self.used is None else self.used + sums.detach()
        if self.watched:
            self.seen.append(dataclasses.replace(encoded, utterance_ids=tuple(utterance_ids)))
        return {"loss": loss, "utterance_loss": losses.detach()}


class SteerMoE(SteeredWriter):
    """A steered encoder whose frames a frozen causal language model reads.

    Args:
        prompt: pools and projects the frames.
        decoder: the language model; frozen.
        n_text: ids from here on are no text. end: id of the end of text.
    """

    def __init__(
        self,
        encoder: SteeredEncoder,
        prompt: AudioPrompt,
        decoder: PreTrainedModel,
        n_text: int,
        end: int,
        balance: float = 0.0,
    ) -> None:
        super().__init__(encoder, balance)
        self.prompt, self.decoder, self.n_text, self.end = prompt, decoder.requires_grad_(False), n_text, end

    @property
    def writer(self) -> nn.Module:
        """The language model."""
        return self.decoder

    def forward(
        self,
        mel: Tensor,
        n_frames: Tensor,
        sequence: Tensor,
        labels: Tensor,
        opening: Tensor | None = None,
        after_audio: Tensor | None = None,
        utterance_ids: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Losses of a batch: loss () and utterance_loss (B,).

        Args:
            mel: (B, n_mels, F); n_frames: (B,) valid mel frames.
            sequence, labels: (B, N), padded on the right. opening: (B, M), which decoding starts from.
            after_audio: (B, n) what follows the audio prompt where utterances have a textual prompt of their own.
        """
        encoded = self.encode(mel, n_frames, keeps=self.keeps)
        batch: Batch = {"n_frames": n_frames, "sequence": sequence, "labels": labels}
        if after_audio is not None:
            batch = with_prompts({**batch, "opening": opening, AFTER: after_audio})
        return self.outputs(encoded, self.losses(encoded, batch), utterance_ids)

    def losses(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Mean token cross-entropy of each text and its end, (B,)."""
        vectors = self.prompt(encoded.states, batch["n_frames"])  # (n, D')
        return utterance_losses(self.decoder, batch["sequence"], batch["labels"], vectors)

    @torch.no_grad()
    def write(self, encoded: Encoded, batch: Batch, max_new_tokens: int, num_beams: int) -> Texts:
        """Texts of an encoded batch, greedy or by beams."""
        vectors, openings = self.prompt(encoded.states, batch["n_frames"]), unpadded(batch["opening"])
        tokens = generate(self.decoder, openings, vectors, self.n_text, self.end, max_new_tokens, num_beams)
        ended = [[*row, self.end][:max_new_tokens] for row in tokens]
        return Texts(tokens, *written_scores(self.decoder, openings, ended, vectors))


def _recomputed(function, *arguments):  # type: ignore[no-untyped-def]  # as transformers calls it
    return checkpoint(function, *arguments, use_reentrant=False)
