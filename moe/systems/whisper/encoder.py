"""The Whisper encoder in pieces, for any audio length: run to a layer, pool over the frames that hold audio, go on from there."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from moe.routing.pooling import pool
from moe.system import Batch
from moe.training.batches import to_device
from moe.training.precision import computing, fastest_device


def conv_stem(encoder: WhisperEncoder, mel: Tensor) -> Tensor:
    """Mel frames (B, n_mels, F) → encoder frames (B, ⌈F/2⌉, D), before positions are added.

    Raises:
        ValueError: more frames than the encoder has positions for.
    """
    n_positions = encoder.embed_positions.num_embeddings
    if mel.shape[-1] > 2 * n_positions:
        raise ValueError(f"{mel.shape[-1]} mel frames: the encoder takes at most {2 * n_positions}")
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
    states: Tensor = encoder.layer_norm(run_layers(encoder, hidden, 0, len(encoder.layers)))
    return states


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
    """The gate's view of a batch: pooled states of one layer of the bare encoder, (B, n_mels, F) → (B, D); layer 0 is the conv stem."""
    index = layer_index(encoder, layer)
    hidden = conv_stem(encoder, mel)
    if index:
        hidden = run_layers(encoder, add_positions(encoder, hidden), 0, index)
    hidden = encoder.layer_norm(hidden) if layer is None else hidden
    return pool(hidden, n_frames, pooling, encoder.config.max_source_positions)


def embedder(
    base: WhisperForConditionalGeneration, layer: int | None, pooling: str, precision: str = "fp32"
) -> Callable[[Batch], Tensor]:
    """What the gate reads of a batch, (B, D), as a function: one layer of the base encoder, adapters off, where it is fastest."""
    nn.Module.to(base, fastest_device()).eval()

    @torch.inference_mode()
    def embed(batch: Batch) -> Tensor:
        batch = to_device(batch, base.device)
        with computing(base.device, precision):  # the encoder alone: a log-mel is single precision always
            return pooled_embedding(base.model.encoder, batch["mel"], batch["n_frames"], layer, pooling)

    return embed
