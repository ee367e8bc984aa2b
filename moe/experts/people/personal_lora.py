"""The layer above a routed layer (or a plain Linear) in which people have their own: y + s·B_p A_p x + Σ_e (v_p[e] − w[e])·s·B_e A_e x.

A_p and B_p are the LoRA of person p, v_p their own weights of the routed experts, w the gate's. Rows of nobody pass through untouched, so
their bits do not depend on who stands beside them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.experts.people.person import SCALE, Layer, Layout, Person
from moe.experts.routed_lora import RoutedLinear, dense_adapters, encoder_layer

Kept = TypeVar("Kept")


@dataclasses.dataclass(frozen=True)
class _Group:
    """The rows of a batch whose people have experts of one layout.

    Attributes:
        rows: (n,) numbers of the utterances; `matrices`: A (n, r, in) and B (n, out, r) by layer.
    """

    rows: Tensor
    matrices: dict[str, tuple[Tensor, Tensor]]


class _Batch:
    """The people of a batch of B utterances, stacked."""

    def __init__(self, people: Sequence[Person | None], device: torch.device) -> None:
        self.n_utterances = len(people)
        self._kept: dict[Hashable, Any] = {}
        layouts = dict.fromkeys(each.layout for each in people if each is not None and each.layout is not None)
        self.groups = [self._group(people, layout, device) for layout in layouts]
        own = {row: each.weights for row, each in enumerate(people) if each is not None and each.weights is not None}
        self.reweighted = torch.tensor(list(own), device=device, dtype=torch.long)
        self.weights = torch.stack(list(own.values())).to(device) if own else None  # (n, E)

    @staticmethod
    def _group(people: Sequence[Person | None], layout: Layout, device: torch.device) -> _Group:
        vectors = {
            row: each.expert
            for row, each in enumerate(people)
            if each is not None and each.expert is not None and each.layout == layout
        }
        return _Group(torch.tensor(list(vectors), device=device), layout.matrices(torch.stack(list(vectors.values())).to(device)))

    def expanded(self, values: Tensor, n_rows: int, rows: bool = False) -> Tensor:
        """Values of utterances (n, …) for the n_rows / B rows that each has in a layer (beams); `rows`: the values are row numbers."""
        times = n_rows // self.n_utterances
        repeated = values.repeat_interleave(times, 0) if times > 1 else values
        return (
            repeated * times + torch.arange(times, device=values.device).repeat(len(values)) if rows and times > 1 else repeated
        )

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, made once for `key`."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: Kept = self._kept[key]
        return kept


class People:
    """The people in force for all personal layers of one model; None: nobody's, and every layer is what it was."""

    def __init__(self) -> None:
        self.batch: _Batch | None = None

    @contextlib.contextmanager
    def use(self, people: Sequence[Person | None] | None, device: torch.device) -> Iterator[None]:
        """People of the utterances of a batch (B,), None for nobody, inside the block."""
        before = self.batch
        somebody = people is not None and any(each is not None for each in people)
        self.batch = _Batch(people, device) if somebody and people is not None else None
        try:
            yield
        finally:
            self.batch = before

    def __deepcopy__(self, memo: dict) -> "People":
        memo[id(self)] = copy = People()  # the layers of a copied model share one copied context
        return copy


class PersonalLinear(nn.Module):
    """A layer of a finished recogniser with the experts of people above it."""

    def __init__(self, inner: nn.Module, people: People, name: str) -> None:
        super().__init__()
        self.inner, self.people, self.name = inner, people, name

    def forward(self, x: Tensor) -> Tensor:
        """(B·n, …, in) → (B·n, …, out), where n rows belong to each utterance (beams)."""
        y: Tensor = self.inner(x)
        batch = self.people.batch
        if batch is None:
            return y
        rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]  # (R, T, in)
        out = y.view(len(rows), -1, y.shape[-1])  # (R, T, out)
        for number, group in enumerate(batch.groups):
            if self.name in group.matrices:
                self._add_experts(out, rows, batch, number, group)
        if batch.weights is not None and isinstance(self.inner, RoutedLinear) and self.inner.routing.weights is not None:
            self._reweight(out, rows, batch, self.inner)
        return y

    def _add_experts(self, out: Tensor, rows: Tensor, batch: _Batch, number: int, group: _Group) -> None:
        def gathered() -> tuple[Tensor, Tensor, Tensor]:
            a, b = (batch.expanded(matrix, len(rows)).transpose(1, 2).to(rows.dtype) for matrix in group.matrices[self.name])
            return batch.expanded(group.rows, len(rows), rows=True), a, b  # (n,), (n, in, r), (n, r, out)

        chosen, a, b = batch.keep((self.name, number, len(rows), rows.dtype), gathered)
        if len(chosen) == len(rows):  # everybody has an expert
            out.add_(torch.bmm(torch.bmm(rows, a), b), alpha=SCALE)
        else:
            out.index_add_(0, chosen, torch.bmm(torch.bmm(rows.index_select(0, chosen), a), b).to(out.dtype), alpha=SCALE)

    @staticmethod
    def _reweight(out: Tensor, rows: Tensor, batch: _Batch, inner: RoutedLinear) -> None:
        """Add what the routed experts change by where a person's weights stand in for the gate's."""
        assert batch.weights is not None
        chosen = batch.expanded(batch.reweighted, len(rows), rows=True)
        change = batch.expanded(batch.weights, len(rows)) - inner.routing.rows(len(rows)).weights.index_select(
            0, chosen
        )  # (n, E)
        a, b, of_ranks = dense_adapters(inner.lora_A, inner.lora_B, change)
        hidden = F.linear(rows.index_select(0, chosen), a.to(rows.dtype)) * (inner.scaling * of_ranks)[:, None].to(rows.dtype)
        out.index_add_(0, chosen, (hidden @ b.to(rows.dtype)).to(out.dtype))

    @property
    def weight(self) -> Tensor:
        """The frozen weight (out, in): some model code asks a Linear for its dtype."""
        weight: Any = self.inner.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (out,)."""
        bias: Any = self.inner.bias
        return bias


def target_layers(model: nn.Module, targets: Sequence[str], first_encoder_layer: int = 0) -> tuple[Layer, ...]:
    """The linear layers whose names end as one of `targets`; encoder layers below the first stay the gate's.

    Raises:
        ValueError: no layer ends so.
    """
    found: list[tuple[str, Any]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, RoutedLinear)) and not name.endswith("base_layer") and ".inner." not in name
    ]
    found += [(name, module.inner) for name, module in model.named_modules() if isinstance(module, PersonalLinear)]
    unknown = [target for target in targets if not any(name.removesuffix(".inner").endswith(target) for name, _ in found)]
    if unknown or not targets:
        there = ", ".join(sorted({name.removesuffix(".inner").rpartition(".")[2] for name, _ in found}))
        raise ValueError(
            f"person_targets={','.join(targets)}: no Linear is called {' or '.join(unknown) or 'so'}; there are {there}"
        )
    named = {name.removesuffix(".inner"): module.weight.shape for name, module in found}
    return tuple(
        Layer(name, shape[1], shape[0])
        for name, shape in sorted(named.items())
        if name.endswith(tuple(targets)) and encoder_layer(name) >= first_encoder_layer
    )


def layout_of(model: nn.Module, targets: Sequence[str], r: int, first_encoder_layer: int = 0) -> Layout:
    """The layout of people's experts of rank r on these layers; only their names and widths are asked.

    Raises:
        ValueError: no layer is called so, or one is narrower than r.
    """
    layers = target_layers(model, targets, first_encoder_layer)
    if narrow := [layer for layer in layers if r > min(layer.n_in, layer.n_out)]:
        raise ValueError(f"person_r={r}: {narrow[0].name} is only {min(narrow[0].n_in, narrow[0].n_out)} wide")
    return Layout(layers, r)


def attach(model: nn.Module, layers: Sequence[Layer], people: People) -> None:
    """Put the layers of people above these of a model, where there are none yet."""
    for layer in layers:
        inner = model.get_submodule(layer.name)
        if not isinstance(inner, PersonalLinear):
            parent, _, leaf = layer.name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PersonalLinear(inner, people, layer.name))
