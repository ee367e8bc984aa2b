"""A control: the same steering under the base's own decoder, without projector and language model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from moe.system import IGNORED, Batch
from moe.systems.steer_moe.encoder import SteeredEncoder
from moe.systems.steer_moe.model import Encoded, SteeredWriter, Texts
from moe.systems.whisper.head_loss import head_cross_entropy
from moe.systems.whisper.tokens import decoder_inputs


class WhisperWriter(SteeredWriter):
    """A steered encoder whose frames the base's decoder reads; inputs are those of a Whisper.

    Args:
        base: the whole base, whose decoder is frozen here. Its encoder is the one that `encoder` steers.
        prompt: ids that its decoder starts from.
    """

    def __init__(
        self, encoder: SteeredEncoder, base: WhisperForConditionalGeneration, prompt: Sequence[int], balance: float = 0.0
    ) -> None:
        super().__init__(encoder, balance)
        self.base, self.prompt_ids = base, list(prompt)
        for written_by in (base.model.decoder, base.proj_out):  # a LoRA in the encoder trains
            written_by.requires_grad_(False)
        base.generation_config.max_length = None  # decoding bounds the new tokens itself

    @property
    def writer(self) -> nn.Module:
        """The base's decoder."""
        decoder: nn.Module = self.base.model.decoder
        return decoder

    def forward(self, mel: Tensor, n_frames: Tensor, labels: Tensor, utterance_ids: Sequence[str] = ()) -> dict[str, Tensor]:
        """Losses of a batch: mel (B, n_mels, F), n_frames (B,), labels (B, N) → loss (), utterance_loss (B,)."""
        encoded = self.encode(mel, n_frames, keeps=self.keeps)
        return self.outputs(encoded, self.losses(encoded, {"labels": labels}), utterance_ids)

    def losses(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Mean token cross-entropy of each reference, (B,)."""
        inputs = decoder_inputs(self.base.config, batch["labels"])
        said = self.base.model.decoder(input_ids=inputs, encoder_hidden_states=encoded.states, use_cache=False).last_hidden_state
        return head_cross_entropy(said, self.base.proj_out.weight, batch["labels"])

    @torch.no_grad()
    def write(self, encoded: Encoded, batch: Batch, max_new_tokens: int, num_beams: int) -> Texts:
        """Texts of an encoded batch, greedy or by beams."""
        states = BaseModelOutput(last_hidden_state=encoded.states)
        most: int = self.base.config.max_target_positions
        limit = min(most, len(self.prompt_ids) + max_new_tokens)
        tokens: Tensor = self.base.generate(encoder_outputs=states, num_beams=num_beams, max_length=limit)
        end = int(self.base.config.eos_token_id)  # type: ignore[arg-type]  # one id
        rows = [[token for token in row if token != end and token not in self.prompt_ids] for row in tokens.tolist()]
        return Texts(rows, *self._scores(encoded, [[*row, end][: limit - len(self.prompt_ids)] for row in rows]))

    def _scores(self, encoded: Encoded, rows: list[list[int]]) -> tuple[list[float], list[int]]:
        """Mean log-probability and number of the tokens of each text."""
        labels = torch.full((len(rows), len(self.prompt_ids) - 1 + max(map(len, rows))), IGNORED)
        for label, row in zip(labels, rows, strict=True):
            ids = [*self.prompt_ids[1:], *row]
            label[: len(ids)] = torch.tensor(ids)
        inputs = decoder_inputs(self.base.config, labels.to(encoded.states.device))
        labels[:, : len(self.prompt_ids) - 1] = IGNORED  # the prompt is read, not said
        said = self.base.model.decoder(input_ids=inputs, encoder_hidden_states=encoded.states, use_cache=False).last_hidden_state
        losses = head_cross_entropy(said, self.base.proj_out.weight, labels.to(said.device))
        return [-loss if math.isfinite(loss) else loss for loss in losses.tolist()], [len(row) for row in rows]
