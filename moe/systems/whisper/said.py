"""What a search has found: token ids, and how sure the model was of each."""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Said:
    """Token ids of a batch.

    Attributes:
        tokens: (B, N), end of text after the end.
        logprobs: natural log-probability of each by the model itself, nothing suppressed left out, (B, N).
    """

    tokens: Tensor
    logprobs: Tensor

    def means(self, end: int) -> tuple[list[float], list[int]]:
        """Mean log-probability and number of the tokens of each row, up to its first end of text and with it."""
        n_tokens = ((self.tokens != end).cumprod(1).sum(1) + 1).clamp(max=self.tokens.shape[1])  # (B,)
        counted = torch.arange(self.tokens.shape[1], device=self.tokens.device) < n_tokens[:, None]
        return ((self.logprobs.double() * counted).sum(1) / n_tokens).tolist(), n_tokens.tolist()
