"""Encoder frames → the vectors that a language model reads: valid frames alone, pooled, then projected to its width."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from moe.systems.steer_moe.encoder import valid_frames
from moe.systems.steer_moe.options import AudioPromptOptions


class AudioPrompt(nn.Module):
    """Pools and projects.

    Args:
        width, decoder_width: of the encoder's frames and of the language model's embeddings.
        frame_ms: milliseconds of an encoder frame.
        spread: root mean square of the language model's embeddings. No projector's first vectors are larger: what its layers add to
            them would be lost in them.

    Raises:
        ValueError: see `prompt_faults`.
    """

    def __init__(self, width: int, decoder_width: int, frame_ms: float, options: AudioPromptOptions, spread: float = 1.0) -> None:
        super().__init__()
        if faults := prompt_faults(options, width, decoder_width, frame_ms):
            raise ValueError("; ".join(faults))
        self.stride, self.pooling = stride_of(options.prompt_ms, frame_ms), options.prompt_pooling
        kinds: dict[str, Any] = {
            "none": nn.Identity,
            "linear": lambda: nn.Linear(width, decoder_width),
            "mlp": lambda: nn.Sequential(nn.Linear(width, decoder_width), nn.GELU(), nn.Linear(decoder_width, decoder_width)),
        }
        self.projector: nn.Module = kinds[options.projector]()
        linear = [layer for layer in self.projector.modules() if isinstance(layer, nn.Linear)]
        for layer in linear[-1:]:  # what it reads has a spread of 1, frames of a layer norm, or less, after the GELU
            nn.init.normal_(layer.weight, std=spread / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, n_frames: Tensor) -> Tensor:
        """Frames (B, T, D) → the vectors of all utterances, one after the other, (n, D').

        Args:
            n_frames: valid mel frames, (B,).
        """
        projected: Tensor = self.projector(self.pooled(states, n_frames))  # (B, P, D')
        places = torch.arange(projected.shape[1], device=states.device)
        return projected[places < n_vectors(n_frames, self.stride)[:, None]]

    def pooled(self, states: Tensor, n_frames: Tensor) -> Tensor:
        """Mean or maximum of each `stride` valid frames, (B, P, D); 0 where there are none."""
        n_missing = -states.shape[1] % self.stride
        states = nn.functional.pad(states, (0, 0, 0, n_missing)).unflatten(1, (-1, self.stride))  # (B, P, stride, D)
        valid = torch.arange(states.shape[1] * self.stride, device=states.device) < valid_frames(n_frames)[:, None]
        valid = valid.view(len(states), -1, self.stride, 1)  # (B, P, stride, 1)
        if self.pooling == "max":
            return states.masked_fill(~valid, -math.inf).amax(2).masked_fill(~valid.any(2), 0.0)
        return (states * valid).sum(2) / valid.sum(2).clamp_min(1)


def prompt_faults(options: AudioPromptOptions, width: int, decoder_width: int | None, frame_ms: float) -> list[str]:
    """No projector between unequal widths, and vectors of no whole number of frames; a width that is not known is equal."""
    found = []
    if options.projector == "none" and decoder_width not in (None, width):
        found.append(
            f"projector=none: the encoder's frames have {width} numbers and the language model reads {decoder_width}; "
            "set projector=linear"
        )
    stride = options.prompt_ms / frame_ms
    if stride < 1 or not stride.is_integer():
        found.append(f"prompt_ms={options.prompt_ms}: must be a multiple of {frame_ms:g}, the milliseconds of an encoder frame")
    return found


def stride_of(prompt_ms: int, frame_ms: float) -> int:
    """Encoder frames in one vector."""
    return int(prompt_ms / frame_ms)


def n_vectors(n_frames: Tensor, stride: int) -> Tensor:
    """Vectors of an audio prompt: ⌈valid encoder frames / stride⌉, (B,)."""
    return -(-valid_frames(n_frames) // stride)
