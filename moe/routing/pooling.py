"""Frames of one layer to what the gate reads of an utterance."""

import torch
from torch import Tensor
from torch.nn import functional as F

POOLINGS = ("mean", "mean_std", "flatten", "none")
UNPOOLED = "pooling=none: leaves a vector for each frame, and clusters and gate need one for each utterance; use mean, mean_std or flatten"


def pool(hidden: Tensor, n_frames: Tensor, pooling: str = "mean", window: int | None = None) -> Tensor:
    """What the gate reads of the frames that hold audio, rounded to half precision.

    It is computed in single precision whatever the encoder computes in, and rounded here and nowhere else: a store of two bytes a
    value then holds exactly what the gate sees in training and decoding.

    Args:
        hidden: encoder frames, (B, T, D).
        n_frames: valid *mel* frames of each utterance, (B,); two mel frames make one encoder frame.
        pooling: `mean` → (B, D); `mean_std` → (B, 2 D); `flatten` → (B, window · D), zeros after the audio.
        window: frames of the encoder's window, for `flatten`.

    Returns:
        float32.

    Raises:
        ValueError: `flatten` without a window.
    """
    n_valid = ((n_frames + 1) // 2).clamp(1, hidden.shape[1]).to(hidden.device)  # (B,)
    valid = torch.arange(hidden.shape[1], device=hidden.device) < n_valid[:, None]  # (B, T)
    with torch.autocast(hidden.device.type, enabled=False):
        if pooling == "flatten":
            if window is None:
                raise ValueError("pooling=flatten: needs the frames of the encoder's window")
            kept = hidden.float().where(valid[:, :, None], 0)
            return _rounded(F.pad(kept, (0, 0, 0, window - kept.shape[1])).flatten(1))
        return _rounded(_statistics(hidden.float(), valid[:, None] / n_valid[:, None, None], pooling))


def _statistics(hidden: Tensor, weight: Tensor, pooling: str) -> Tensor:
    """Mean, or mean and standard deviation, of frames (B, T, D) with weights (B, 1, T) that sum to 1."""
    mean = torch.bmm(weight, hidden)  # (B, 1, D)
    if pooling == "mean":
        return mean[:, 0]
    variance = torch.bmm(weight, (hidden - mean).square())
    return torch.cat([mean, variance.sqrt()], dim=-1)[:, 0]


def _rounded(values: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).half().float()
