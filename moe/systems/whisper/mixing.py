"""Decoding that matches `mixing=loss`: k experts read the same tokens, and the probabilities of the next one are mixed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration


def mixed(logits: Tensor, log_values: Tensor) -> Tensor:
    """Log-probabilities of the mixture.

    Args:
        logits: (B·k·n, …, V), of each of n hypotheses by each of the k experts of an utterance.
        log_values: log of the experts' weights, (B, k).

    Returns:
        (B·n, …, V).
    """
    n_utterances, k = log_values.shape
    by_expert = logits.log_softmax(-1).unflatten(0, (n_utterances, k, -1))  # (B, k, n, …, V)
    weights = log_values.view(n_utterances, k, *[1] * (by_expert.dim() - 2))
    return torch.logsumexp(by_expert + weights, dim=1).flatten(0, 1)


@contextmanager
def mixed_head(base: WhisperForConditionalGeneration, values: Tensor | None) -> Iterator[None]:
    """Inside the block a model says what the mixture says, the same in all k rows of a hypothesis: for searches of transformers.

    Args:
        values: weights of the k experts, (B, k); None changes nothing.
    """
    if values is None:
        yield
        return
    log_values = values.float().log()

    def mix(module: Any, given: Any, output: Any) -> Any:
        found = mixed(output.logits.float(), log_values).unflatten(0, (len(log_values), -1))  # (B, n, N, V)
        output.logits = found.repeat_interleave(log_values.shape[1], 0).flatten(0, 1)
        return output

    handle = base.register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()
