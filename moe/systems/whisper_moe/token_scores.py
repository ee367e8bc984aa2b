"""How sure a recogniser is of tokens: their log-probabilities by one decoder pass over what was decoded.

The model's own probabilities: nothing that `generate` suppresses or penalises is left out of them. Greedy search and beams are
scored alike, and the cost is that of one parallel decoder pass, whatever the search cost.
"""

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.passes import Encoded

LOGIT_BUDGET = 1 << 26  # logits held at a time: 256 MB


@torch.no_grad()
def token_logprobs(model: WhisperMoE, encoded: Encoded, tokens: Tensor) -> Tensor:
    """Natural log-probability of every token after the first, given those before it: tokens (B, N) → (B, N − 1)."""
    k = 1 if encoded.values is None else encoded.values.shape[1]
    n_rows = max(1, LOGIT_BUDGET // (k * tokens.shape[1] * model.base.config.vocab_size))
    starts = range(0, len(tokens), n_rows)
    return torch.cat([_logprobs(model, encoded.rows(slice(at, at + n_rows)), tokens[at : at + n_rows], k) for at in starts])


def _logprobs(model: WhisperMoE, encoded: Encoded, tokens: Tensor, k: int) -> Tensor:
    inputs, targets = tokens[:, :-1].repeat_interleave(k, 0), tokens[:, 1:, None].repeat_interleave(k, 0)  # (B·k, N − 1)
    with model.experts(encoded.weights, encoded.people):
        logits = model.base(encoder_outputs=BaseModelOutput(encoded.states), decoder_input_ids=inputs, use_cache=False).logits
    logprobs: Tensor = logits.float().log_softmax(-1).gather(-1, targets)[..., 0]  # (B·k, N − 1)
    if encoded.values is None:
        return logprobs
    return torch.logsumexp(logprobs.unflatten(0, (-1, k)) + encoded.values.float().log()[..., None], dim=1)
