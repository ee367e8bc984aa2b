"""Greedy search, token by token: the tokens that transformers' `generate` says, at the cost of the model alone, with their probabilities.

`generate` prepares inputs, masks and caches anew for every token, which on a small model costs as much as the model, and leaves the
log-probabilities to a second pass. Here keys and values lie in tensors made once, and each probability is read where its token is chosen.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, WhisperForConditionalGeneration

from moe.systems.whisper.packed_linear import packed

KNOWN = {  # what a generation config may hold without changing which token is likeliest, beside what is read here
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "max_length", "max_new_tokens", "is_multilingual",
    "lang_to_id", "task_to_id", "language", "task", "no_timestamps_token_id", "prev_sot_token_id", "return_timestamps",
    "suppress_tokens", "begin_suppress_tokens", "alignment_heads", "max_initial_timestamp_index", "median_filter_width",
    "forced_decoder_ids", "transformers_version", "cache_config", "use_cache",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Said:
    """What greedy search chose.

    Attributes:
        tokens: (B, N), end of text after the end.
        logprobs: natural log-probability of each by the model itself, nothing suppressed left out, (B, N).
    """

    tokens: Tensor
    logprobs: Tensor


def is_plain(generation: GenerationConfig) -> bool:
    """Whether greedy search is all that a generation config asks for; a penalty, say, is left to transformers."""
    asked = set(generation.to_diff_dict()) - KNOWN
    return not asked and isinstance(generation.eos_token_id, int) and not getattr(generation, "return_timestamps", False)


class StepDecoder:
    """The decoder of a Whisper, some tokens at a time, after those that it has read.

    Args:
        base: the model; its adapters, if any, are as they are when it is called.
        states: of the encoder, (R, T, D).
        n_most: tokens that will be read at most.
    """

    def __init__(self, base: WhisperForConditionalGeneration, states: Tensor, n_most: int) -> None:
        self.decoder, self.n_most, self.n_read = base.model.decoder, n_most, 0
        self.audio = [
            (self._heads(a, a.k_proj(states)), self._heads(a, a.v_proj(states))) for a in self._attentions("encoder_attn")
        ]
        self.text: list[tuple[Tensor, Tensor]] = []
        self.head = packed(base.proj_out)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read tokens (R, n) and return the logits of the next one, (R, V) float32."""
        n, at = tokens.shape[1], self.n_read
        self.n_read += n
        hidden = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[at : self.n_read]
        for index, layer in enumerate(self.decoder.layers):
            hidden = hidden + self._own(index, layer.self_attn, layer.self_attn_layer_norm(hidden), at)
            hidden = hidden + self._attend(layer.encoder_attn, layer.encoder_attn_layer_norm(hidden), *self.audio[index])
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        return self.head(self.decoder.layer_norm(hidden[:, -1])).float()

    def _own(self, index: int, attention: Any, hidden: Tensor, at: int) -> Tensor:
        keys, values = self._heads(attention, attention.k_proj(hidden)), self._heads(attention, attention.v_proj(hidden))
        if not at:  # (R, heads, n_most, D / heads), in the precision that is computed in
            shape = (*keys.shape[:2], self.n_most, keys.shape[-1])
            self.text.append((keys.new_empty(shape), values.new_empty(shape)))
        for held, new in zip(self.text[index], (keys, values), strict=True):
            held[:, :, at : self.n_read] = new
        held_keys, held_values = (held[:, :, : self.n_read] for held in self.text[index])
        return self._attend(attention, hidden, held_keys, held_values, is_causal=not at and hidden.shape[1] > 1)

    def _attend(self, attention: Any, hidden: Tensor, keys: Tensor, values: Tensor, is_causal: bool = False) -> Tensor:
        queries = self._heads(attention, attention.q_proj(hidden))
        found = F.scaled_dot_product_attention(queries, keys, values, is_causal=is_causal)
        added: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2))
        return added

    def _attentions(self, name: str) -> list[Any]:
        return [getattr(layer, name) for layer in self.decoder.layers]

    @staticmethod
    def _heads(attention: Any, projected: Tensor) -> Tensor:
        """(R, n, D) → (R, heads, n, D / heads)."""
        heads: Tensor = projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        return heads


@torch.no_grad()
def greedy(
    base: WhisperForConditionalGeneration,
    states: Tensor,
    prompt: Sequence[int],
    n_new: int,
    min_new: int = 0,
    log_values: Tensor | None = None,
) -> Said:
    """The likeliest token, again and again, until every utterance has ended.

    Args:
        base: the model, its adapters as they are to be used.
        states: of the encoder, (B, T, D), or (B·k, T, D) where the probabilities of k experts are mixed.
        prompt: token ids that every hypothesis starts from.
        n_new: tokens at most.
        min_new: tokens before which no hypothesis ends.
        log_values: log of the weights of the k experts, (B, k).
    """
    end, k = int(base.generation_config.eos_token_id), 1 if log_values is None else log_values.shape[1]
    decoder = StepDecoder(base, states, len(prompt) + n_new)
    never, never_first = (_suppressed(base, states, name) for name in ("suppress_tokens", "begin_suppress_tokens"))
    read = torch.tensor(prompt, device=states.device).expand(len(states), -1)
    ended = torch.zeros(len(states) // k, dtype=torch.bool, device=states.device)
    tokens, logprobs = [], []
    for number in range(n_new):
        logits = decoder(read)  # (B·k, V)
        logits = logits if log_values is None else _mixed(logits, log_values)  # (B, V)
        total = logits.logsumexp(-1)  # (B,), of all tokens
        logits[:, never] = -torch.inf
        if number == 0:
            logits[:, never_first] = -torch.inf
        if number < min_new:
            logits[:, end] = -torch.inf
        chosen = logits.max(-1).indices.where(~ended, end)  # (B,); `argmax` takes three times as long
        tokens.append(chosen)
        logprobs.append(logits.gather(-1, chosen[:, None])[:, 0] - total)
        ended |= chosen == end
        if bool(ended.all()):
            break
        read = chosen[:, None].repeat_interleave(k, 0)
    return Said(torch.stack(tokens, 1), torch.stack(logprobs, 1))


def _mixed(logits: Tensor, log_values: Tensor) -> Tensor:
    """Log-probabilities of the mixture of k experts, (B·k, V) → (B, V)."""
    return torch.logsumexp(logits.log_softmax(-1).unflatten(0, log_values.shape) + log_values[..., None], dim=1)


def _suppressed(base: WhisperForConditionalGeneration, states: Tensor, name: str) -> Tensor:
    """Ids of the tokens that a generation config suppresses, (n,)."""
    return torch.tensor(getattr(base.generation_config, name, None) or [], dtype=torch.long, device=states.device)
