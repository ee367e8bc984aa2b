"""Several adapters of one layer as one of a smaller rank: the nearest to their weighted sum, by singular values."""

from collections.abc import Sequence

import torch
from torch import Tensor


def low_rank_sum(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[float], rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) whose product is the best approximation of Σ w·B A of that rank (Eckart and Young 1936).

    Only small matrices are decomposed: what lies between the QR factors of the stacked A and B. The rows of A have length 1, where there
    are as many as asked for, so that B alone is zero where the sum is zero: an adapter whose A is zero too would never learn again.

    Args:
        a, b: of each adapter, (r, in) and (out, r).
    """
    n_in, n_out = a[0].shape[1], b[0].shape[0]
    left, small = torch.linalg.qr(torch.cat([weight * each.double() for weight, each in zip(weights, b, strict=True)], 1))
    right, large = torch.linalg.qr(torch.cat([each.double() for each in a]).T)  # (in, n), (n, R)
    u, values, v = torch.linalg.svd(small @ large.T, full_matrices=False)
    n = min(rank, len(values))
    new_a, new_b = a[0].new_zeros(rank, n_in), b[0].new_zeros(n_out, rank)
    new_a[:n] = v[:n] @ right.T
    new_b[:, :n] = left @ (u[:, :n] * values[:n])
    return new_a, new_b
