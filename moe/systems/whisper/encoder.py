"""The Whisper encoder in pieces, for any audio length: run to a layer, pool over the frames that hold audio, go on from there."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

POOLINGS = ("mean", "mean_std", "flatten", "none")
UNPOOLED = "pooling=none: leaves a vector for each frame, and clusters and gate need one for each utterance; use mean, mean_std or flatten"


def conv_stem(encoder: WhisperEncoder, mel: Tensor) -> Tensor:
    """Mel frames (B, n_mels, F) → encoder frames (B, ⌈F/2⌉, D), before positions are added.

    Raises:
        ValueError: more frames than the encoder has positions for.
    """
    n_positions = encoder.embed_positions.num_embeddings
    if mel.shape[-1] > 2 * n_positions:
        raise ValueError(f"{mel.shape[-1]} mel frames: the encoder hears at most {2 * n_positions}")
    hidden = F.gelu(encoder.conv1(mel))  # (B, D, F)
    return F.gelu(encoder.conv2(hidden)).transpose(1, 2).contiguous()  # (B, T, D): left as it is, every layer would pay for it


def add_positions(encoder: WhisperEncoder, hidden: Tensor) -> Tensor:
    """Stem frames (B, T, D) with positions added: the input of layer 0."""
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    return F.dropout(hidden, p=encoder.dropout, training=encoder.training)


def run_layers(encoder: WhisperEncoder, hidden: Tensor, start: int, stop: int) -> Tensor:
    """Frames entering layer `start` → frames leaving layer `stop - 1`, (B, T, D) both."""
    for layer in encoder.layers[start:stop]:
        hidden = layer(hidden, None)
    return hidden


def encode(encoder: WhisperEncoder, mel: Tensor) -> Tensor:
    """The whole encoder; equals transformers' own forward at full length. (B, n_mels, F) → (B, T, D)."""
    hidden = add_positions(encoder, conv_stem(encoder, mel))
    return encoder.layer_norm(run_layers(encoder, hidden, 0, len(encoder.layers)))


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
    """
    n_valid = ((n_frames + 1) // 2).clamp(1, hidden.shape[1]).to(hidden.device)  # (B,)
    valid = torch.arange(hidden.shape[1], device=hidden.device) < n_valid[:, None]  # (B, T)
    with torch.autocast(hidden.device.type, enabled=False):
        if pooling == "flatten":
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


def layer_index(encoder: WhisperEncoder, layer: int | None) -> int:
    """A layer option as an index: None is the last layer.

    Raises:
        ValueError: the encoder has no such layer.
    """
    n_layers = len(encoder.layers)
    if layer is not None and not 0 <= layer <= n_layers:
        raise ValueError(f"gate_layer={layer}: the encoder has layers 0 (conv stem) to {n_layers}")
    return n_layers if layer is None else layer


def pooled_embedding(encoder: WhisperEncoder, mel: Tensor, n_frames: Tensor, layer: int | None, pooling: str) -> Tensor:
    """The gate's view of a batch: pooled states of one layer of the bare encoder; layer 0 is the conv stem without positions."""
    index = layer_index(encoder, layer)
    hidden = conv_stem(encoder, mel)
    if index:
        hidden = run_layers(encoder, add_positions(encoder, hidden), 0, index)
    hidden = encoder.layer_norm(hidden) if layer is None else hidden
    return pool(hidden, n_frames, pooling, encoder.config.max_source_positions)
