"""When a Whisper said each word: dynamic time warping of what its decoder attends to in the audio.

As openai-whisper and transformers do it (Radford et al. 2022, arXiv:2212.04356; `generate(return_token_timestamps=True)`): attention to
the audio of the heads that align, standardised over the tokens and smoothed over the frames, gives each token its frames. The path is
found by transformers' own function, and so is the splitting of tokens into words. A base without `alignment_heads` in its generation
config, as the hub's have, is aligned by all heads of the upper half of its decoder.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.generation_whisper import _dynamic_time_warping
from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

from moe.recognition.words import Word

SMOOTHED = 7  # frames of the median filter


@contextmanager
def watched_attention(model: WhisperForConditionalGeneration) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Queries (R, N, D) and keys (R, T, D) of each decoder layer's attention to the audio, once the decoder has run inside the block."""
    layers = [layer.encoder_attn for layer in model.model.decoder.layers]
    seen: list[dict[str, Tensor]] = [{} for _ in layers]
    found: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as stack:
        for attention, kept in zip(layers, seen, strict=True):
            for name in ("q_proj", "k_proj"):
                handle = getattr(attention, name).register_forward_hook(
                    lambda module, given, output, kept=kept, name=name: kept.update({name: output})
                )
                stack.callback(handle.remove)
        yield found
        found += [(kept["q_proj"], kept["k_proj"]) for kept in seen]


def attention_weights(
    model: WhisperForConditionalGeneration, seen: Sequence[tuple[Tensor, Tensor]], heads: Sequence[tuple[int, int]], n_frames: int
) -> Tensor:
    """Attention to the first `n_frames` of the audio of some heads (layer, head): (R, H, N, T)."""
    found = []
    for layer, head in heads:
        width: int = model.model.decoder.layers[layer].encoder_attn.head_dim
        queries, keys = (part[..., head * width : (head + 1) * width].float() for part in seen[layer])
        found.append((queries @ keys[:, :n_frames].transpose(1, 2) / math.sqrt(width)).softmax(-1))  # (R, N, T)
    return torch.stack(found, 1)


def alignment_heads(model: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    """The heads (layer, head) that align: as the generation config says, else all of the upper half of the decoder."""
    known: Any = getattr(model.generation_config, "alignment_heads", None)
    if known:
        return [(int(layer), int(head)) for layer, head in known]
    n_layers, n_heads = model.config.decoder_layers, model.config.decoder_attention_heads
    return [(layer, head) for layer in range(n_layers // 2, n_layers) for head in range(n_heads)]


def token_starts(weights: Tensor, n_prompt: int) -> np.ndarray:
    """The frame at which each token after the prompt begins, end of text included, and behind them the end of the audio.

    Args:
        weights: attention (H, N, T) while prompt, tokens and end of text were read; row i of N says the token behind it.
    """
    from scipy.ndimage import median_filter  # only where words are timed: models run without SciPy

    deviations, means = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    standard = ((weights - means) / deviations.clamp_min(1e-9)).cpu().numpy()
    smooth = median_filter(standard, size=(1, 1, SMOOTHED), mode="reflect").mean(0)  # (N, T)
    rows, frames = _dynamic_time_warping(-smooth[n_prompt - 1 : -1])
    starts = np.diff(rows, prepend=-1) > 0
    return np.append(frames[starts], weights.shape[-1]).astype(np.float64)


def timed_words(
    tokenizer: WhisperTokenizer, tokens: Sequence[int], starts: np.ndarray, logprobs: Sequence[float], frame_s: float
) -> list[Word]:
    """The words that text tokens make up, as they stand in the text.

    Args:
        starts: frames at which the tokens begin, and behind them that at which the last one ends, shape (n,), n ≥ n_tokens + 1.
        logprobs: natural log-probabilities of the tokens.
    """
    language = LANGUAGES.get(tokenizer.language or "", tokenizer.language)
    texts, _, places = _combine_tokens_into_words(tokenizer, list(tokens), language)
    found = []
    for text, place in zip(texts, places, strict=True):
        if text.strip() and place:
            start, end = starts[place[0]] * frame_s, starts[place[-1] + 1] * frame_s
            confidence = math.exp(sum(logprobs[index] for index in place) / len(place))
            found.append(Word(text.strip(), round(float(start), 3), round(float(end), 3), confidence))
    return found
