"""When each word of a hypothesis was said, and how sure a mixture is of it: one more pass of the decoder over each utterance's tokens."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.system import WORDS
from moe.systems.whisper import word_times
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.passes import Encoded
from moe.systems.whisper_moe.token_scores import token_logprobs


@torch.no_grad()
def words_of(
    model: WhisperMoE, inputs: WhisperInputs, encoded: Encoded, prompt: list[int], tokens: Tensor, n_frames: list[int]
) -> list[dict[str, list[dict[str, Any]]]]:
    """The timed words of each utterance, alone, so that nothing of the batch's padding is attended to.

    Args:
        tokens: (B, N) that were found; special ones are left out.
        n_frames: valid mel frames of each utterance.
    """
    extractor, tokenizer = inputs.processor.feature_extractor, inputs.processor.tokenizer
    frame_s, special = 2 * extractor.hop_length / extractor.sampling_rate, set(tokenizer.all_special_ids)
    found = []
    for row, n_mel in enumerate(n_frames):
        said = [token for token in tokens[row].tolist() if token not in special]
        words = []
        if said:
            read = _read(model, prompt, said)  # (1, n)
            alone = encoded.rows(slice(row, row + 1))
            logprobs = token_logprobs(model, alone, read)[0, len(prompt) - 1 :].tolist()
            words = word_times.timed_words(
                tokenizer, said, _starts(model, alone, read, len(prompt), -(-n_mel // 2)), logprobs, frame_s
            )
        found.append({WORDS: [dataclasses.asdict(word) for word in words]})
    return found


def _read(model: WhisperMoE, prompt: list[int], said: list[int]) -> Tensor:
    """What the decoder reads: prompt, text and end of text, (1, n)."""
    end: Any = model.base.config.eos_token_id  # one id
    return torch.tensor([[*prompt, *said, end][: model.base.config.max_target_positions]], device=model.device)


def _starts(model: WhisperMoE, encoded: Encoded, read: Tensor, n_prompt: int, n_frames: int) -> np.ndarray:
    """Encoder frames at which the tokens of one utterance begin, and the last ends, (n_tokens + 1,) or more."""
    base = model.base
    with model.experts(encoded.weights, encoded.people), word_times.watched_attention(base) as seen:
        rows = read.expand(len(encoded.states), -1)  # (k, n)
        base.model.decoder(input_ids=rows, encoder_hidden_states=encoded.states, use_cache=False)
    weights = word_times.attention_weights(base, seen, word_times.alignment_heads(base), n_frames)  # (k, H, n, T)
    mixed = weights[0] if encoded.values is None else (weights * encoded.values[0, :, None, None, None]).sum(0)
    return word_times.token_starts(mixed, n_prompt)
