"""A total rank divided between the shared adapter and the experts: what all speakers have in common needs most of it.

Shared rank 8 beneath six experts of rank 8 and shared rank 32 beneath six of rank 4 are both 56 in all; docs/results.md has both.
"""

import dataclasses
from typing import Any

from moe.experts.routed_lora import AdapterOptions


def split_ranks(options: AdapterOptions, n_experts: int) -> AdapterOptions:
    """The options with the ranks of both in numbers: `shared_r + n_experts · lora_r = adapter_rank` where a total was asked for.

    The scale of the adapters stays what lora_alpha makes it without a total, which is also that of one LoRA of this size.

    Raises:
        ValueError: the total is too small for so many experts, or cannot be divided as asked.
    """
    if options.adapter_rank is None:
        return options
    total, share = options.adapter_rank, options.shared_share
    lora_r = max(1, round(total * (1 - share) / n_experts))
    shared_r = total - n_experts * lora_r
    asked = f"adapter_rank={total} with shared_share={share:g} and {n_experts} experts"
    if share == 0 and shared_r:
        raise ValueError(f"{asked}: without a shared adapter it must be a multiple of {n_experts}")
    if shared_r < (share > 0):
        raise ValueError(f"{asked}: leaves the shared adapter no rank; set adapter_rank to {n_experts * lora_r + 1} or more")
    plain: dict[str, Any] = {"adapter_rank": None, "shared_share": AdapterOptions.shared_share}
    alpha = options.lora_alpha if options.rank_stabilised else options.scale(options.lora_r) * lora_r
    ranks: dict[str, Any] = {"lora_r": lora_r, "shared_r": shared_r or None, "shared_expert": shared_r > 0, "lora_alpha": alpha}
    return dataclasses.replace(options, **ranks, **plain)
