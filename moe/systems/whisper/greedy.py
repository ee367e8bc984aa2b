"""Greedy search, token by token: what transformers' `generate` says, with the probabilities read where the tokens are chosen."""

import torch
from torch import Tensor

from moe.systems.whisper.next_token import NextToken
from moe.systems.whisper.said import Said


@torch.no_grad()
def greedy(next_token: NextToken) -> Said:
    """The likeliest token, again and again, until every utterance has ended or said as many as it may."""
    end, n_utterances = next_token.end, len(next_token.prompts)
    ended = next_token.prompts.new_zeros(n_utterances, dtype=torch.bool)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for _ in range(next_token.n_new):
        logits, total = next_token(tokens[-1][:, None] if tokens else None)  # (B, V), (B,)
        chosen = logits.max(-1).indices.where(~ended, end)  # (B,); `argmax` takes three times as long
        tokens.append(chosen)
        logprobs.append(logits.gather(-1, chosen[:, None])[:, 0] - total)
        ended |= chosen == end
        if bool(ended.all()):
            break
    return Said(torch.stack(tokens, 1), torch.stack(logprobs, 1))
