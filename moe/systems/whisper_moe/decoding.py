"""A routed batch → hypotheses: search, texts, and how sure the model was of its tokens."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperTokenizer

from moe.system import Batch, DecodingOptions, Hypothesis
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.next_token import is_plain
from moe.systems.whisper.said import Said
from moe.systems.whisper.search import clean_texts, most_new_tokens
from moe.systems.whisper.tokens import language_ids, prompt_ids
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.passes import Encoded, Routed
from moe.systems.whisper_moe.spoken_words import words_of
from moe.systems.whisper_moe.token_scores import token_logprobs


def hypotheses_of(
    model: WhisperMoE, inputs: WhisperInputs, batch: Batch, routed: Routed, options: DecodingOptions, with_loss: bool
) -> list[Hypothesis]:
    """Hypotheses of a routed batch, in its order; see `moe.system.System.decode`."""
    tokenizer, ids = inputs.processor.tokenizer, batch["utterance_ids"]
    limit = max_length(model, inputs, int(batch["n_frames"].max()), options)
    encoded = model.encode(routed)
    tokens, means, counts = searched(model, tokenizer, encoded, options.beam_size, limit)
    losses = model.decoder_loss(encoded, batch["labels"]).tolist() if with_loss else [math.nan] * len(ids)
    rows = _with_own(_rows(None if routed.weights is None else routed.weights.shares(), len(ids)), routed)
    gate = _rows(routed.probabilities, len(ids))
    details: list[Any] = [{}] * len(ids)
    if options.word_times:
        details = words_of(model, inputs, encoded, decoder_prompt(model, tokenizer), tokens, batch["n_frames"].tolist())
    values = zip(ids, clean_texts(tokenizer, tokens), rows, losses, means, counts, gate, details, strict=True)
    return [Hypothesis(*each) for each in values]


def searched(
    model: WhisperMoE, tokenizer: WhisperTokenizer, encoded: Encoded, beam_size: int, limit: int
) -> tuple[Tensor, list[float], list[int]]:
    """Tokens (B, N) of an encoded batch, the mean log-probability of each row and the number of its tokens.

    Our own search reads the probabilities as it goes. What a generation config asks for beyond it is left to transformers' `generate`,
    and scored by a second pass of the decoder.
    """
    prompt = decoder_prompt(model, tokenizer)
    if is_plain(model.base.generation_config):
        said = model.say(encoded, prompt, limit - len(prompt), beam_size)
    else:
        said = scored(model, encoded, prompt, model.search(encoded, num_beams=beam_size, max_length=limit), limit)
    end: Any = model.base.config.eos_token_id  # one id
    return said.tokens, *said.means(end)


def decoder_prompt(model: WhisperMoE, tokenizer: WhisperTokenizer) -> list[int]:
    """The prompt that decoding starts from: the training's, in the language that is asked of the model now."""
    config = model.base.generation_config
    languages = language_ids(config)
    asked = languages.get(getattr(config, "language", None) or "")
    return [asked if asked is not None and token in languages.values() else token for token in prompt_ids(tokenizer)]


def scored(model: WhisperMoE, encoded: Encoded, prompt: list[int], tokens: Tensor, limit: int) -> Said:
    """Tokens (B, n), with end of text after them unless the bound cut it off, and their log-probabilities by a second pass."""
    end: Any = model.base.config.eos_token_id  # one id
    ended = F.pad(tokens, (0, 1), value=end)[:, : limit - len(prompt)]
    rows = torch.cat([tokens.new_tensor(prompt).expand(len(tokens), -1), ended], dim=1)
    return Said(ended, token_logprobs(model, encoded, rows)[:, len(prompt) - 1 :])


def max_length(model: WhisperMoE, inputs: WhisperInputs, n_frames: int, options: DecodingOptions) -> int:
    """Bound on prompt and hypothesis, from the length bucket of the longest utterance and so the same for every one of a bucket."""
    n_new = most_new_tokens(inputs, n_frames, options)
    most: int = model.base.config.max_target_positions
    return min(most, len(prompt_ids(inputs.processor.tokenizer)) + n_new)


def _with_own(shares: list[np.ndarray] | list[None], routed: Routed) -> list[np.ndarray] | list[None]:
    """Shares of the experts with people's own weights in place of the gate's."""
    if routed.people is None or routed.weights is None:
        return shares
    own = [None if person is None else person.weights for person in routed.people]
    rows: list[Any] = [share if mine is None else mine.float().cpu().numpy() for share, mine in zip(shares, own, strict=True)]
    return rows


def _rows(values: Tensor | None, n_rows: int) -> list[np.ndarray] | list[None]:
    return [None] * n_rows if values is None else list(values.float().cpu().numpy())
