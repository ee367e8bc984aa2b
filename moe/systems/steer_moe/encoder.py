"""A frozen Whisper encoder with steering after its layers, or with a LoRA in them; its own dropout stays off."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from moe.experts.routed_lora import AdapterOptions, attach
from moe.systems.steer_moe.steering import ROUTER, LayerPass, Steering
from moe.systems.whisper import encoder as whisper_encoder


class SteeredEncoder(nn.Module):
    """Log-mel → frames of the final layer norm.

    Args:
        encoder: frozen here.
        steering: None for the encoder as it is.
        lora: a LoRA in its layers.
    """

    def __init__(self, encoder: WhisperEncoder, steering: Steering | None = None, lora: AdapterOptions | None = None) -> None:
        super().__init__()
        encoder.requires_grad_(False)
        self.lora = attach(encoder, 0, lora) if lora else None
        self.encoder, self.steering = encoder, steering
        self.checkpoints = False

    def forward(
        self, mel: Tensor, n_frames: Tensor, routing: str = ROUTER, passes: list[LayerPass] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames (B, T, D), and which of them hold audio, (B, T).

        Args:
            mel: (B, n_mels, F); n_frames: (B,) valid mel frames.
            routing: of the steering. passes: takes what each steered layer did.
        """
        if self.lora is None:
            return self._layers(mel, n_frames, routing, passes)
        with self.lora.use(None):
            return self._layers(mel, n_frames, routing, passes)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what trains; the encoder itself never drops anything."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def _contexts(self) -> dict[str, Any]:
        """A LoRA is on in a recomputation too."""
        return {} if self.lora is None else {"context_fn": self.lora.checkpoint_contexts}

    def _layers(self, mel: Tensor, n_frames: Tensor, routing: str, passes: list[LayerPass] | None) -> tuple[Tensor, Tensor]:
        hidden = whisper_encoder.add_positions(self.encoder, whisper_encoder.conv_stem(self.encoder, mel))
        valid = torch.arange(hidden.shape[1], device=mel.device) < valid_frames(n_frames)[:, None]  # (B, T)
        for number, layer in enumerate(self.encoder.layers, start=1):
            if self.checkpoints and hidden.requires_grad:
                hidden = checkpoint(layer, hidden, None, use_reentrant=False, **self._contexts)
            else:
                hidden = layer(hidden, None)
            if self.steering is not None:
                hidden = self.steering(number, hidden, valid, routing, passes)
        return self.encoder.layer_norm(hidden), valid


def valid_frames(n_frames: Tensor) -> Tensor:
    """Encoder frames that hold audio, at least one: valid mel frames (B,) → (B,)."""
    return ((n_frames + 1) // 2).clamp_min(1)
