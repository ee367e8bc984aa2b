"""A total rank is divided to the last one, and what cannot be divided is refused with the numbers."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moe.experts.rank_split import split_ranks
from moe.experts.routed_lora import AdapterOptions


@pytest.mark.parametrize(
    ("total", "share", "n_experts", "shared_r", "lora_r"),
    [(56, 0.57, 6, 32, 4), (56, 1 / 7, 6, 8, 8), (56, 0.79, 6, 44, 2), (60, 0.0, 6, 0, 10), (112, 0.57, 12, 64, 4), (28, 6 / 7, 2, 24, 2)],
)  # fmt: skip
def test_shares_by_hand(total: int, share: float, n_experts: int, shared_r: int, lora_r: int) -> None:
    found = split_ranks(AdapterOptions(adapter_rank=total, shared_share=share), n_experts)
    assert (found.shared_rank, found.lora_r, found.shared_expert) == (shared_r, lora_r, shared_r > 0)


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.integers(1, 24))
def test_nothing_of_the_total_is_lost(total: int, share: float, n_experts: int) -> None:
    try:
        found = split_ranks(AdapterOptions(adapter_rank=total, shared_share=share), n_experts)
    except ValueError as error:
        assert total <= n_experts * max(1, round(total * (1 - share) / n_experts)) and "adapter_rank" in str(error)
        return
    assert found.shared_rank + n_experts * found.lora_r == total
    assume(found.lora_r > 1)
    assert abs(found.shared_rank - share * total) <= n_experts / 2 + 1e-9


@given(st.integers(200, 400), st.floats(0.05, 0.95), st.integers(1, 12), st.floats(0.5, 64), st.booleans())
def test_a_divided_rank_keeps_the_scale(total: int, share: float, n_experts: int, alpha: float, stabilised: bool) -> None:
    whole = AdapterOptions(adapter_rank=total, shared_share=share, lora_alpha=alpha, rank_stabilised=stabilised)
    found = split_ranks(whole, n_experts)
    for rank in (found.lora_r, found.shared_rank, total):
        assert found.scale(rank) == pytest.approx(whole.scale(rank))


def test_without_a_total_the_ranks_are_as_given() -> None:
    options = AdapterOptions(lora_r=3, shared_r=5)
    assert split_ranks(options, 4) is options


@pytest.mark.parametrize(
    ("given", "n_experts", "said"),
    [({"adapter_rank": 5}, 6, "set adapter_rank to 7 or more"), ({"adapter_rank": 56, "shared_share": 0.0}, 6, "must be a multiple of 6")],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused(given: dict, n_experts: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split_ranks(AdapterOptions(**given), n_experts)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapter_rank": 56, "lora_r": 8}, "adapter_rank=56 with lora_r=8: shared_share divides it"),
        ({"adapter_rank": 56, "shared_r": 16, "lora_r": 8}, "with lora_r=8, shared_r=16"),
        ({"adapter_rank": 56, "shared_expert": False}, "with shared_expert=false"),
        ({"shared_share": 0.3}, "shared_share=0.3: needs adapter_rank"),
    ],
)
def test_ranks_that_are_said_twice_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdapterOptions(**given)


def test_a_stabilised_scale_falls_with_the_root_of_the_rank() -> None:
    plain, stabilised = AdapterOptions(lora_r=4, lora_alpha=8), AdapterOptions(lora_r=4, lora_alpha=8, rank_stabilised=True)
    assert [plain.scale(rank) for rank in (4, 16)] == [2, 2]
    assert [stabilised.scale(rank) for rank in (4, 16)] == [4, 2]
