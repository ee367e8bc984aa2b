"""Routed LoRA: a frozen Linear, a shared adapter that is always on, and E experts mixed per utterance in one batched product.

For utterance b:  y = W x + s·B₀A₀ x + Σ_e w[b, e]·s·B_e A_e x   (LoRA: Hu et al. 2021, arXiv:2106.09685)
"""

import dataclasses
import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.options import Options, option
from moe.routing import Routing, RoutingWeights

DENSE_SHARE = 0.5  # from this share of experts in use, one dense product over all is cheaper than gathering


@dataclasses.dataclass(frozen=True)
class AdapterOptions(Options):
    """Shape of the experts and of the shared adapter beneath them."""

    lora_r: int = option(8, "rank of each expert", low=1)
    lora_alpha: float = option(16.0, "LoRA alpha of each expert; the scale alpha / r is the shared adapter's too", above=0)
    lora_dropout: float = option(0.0, "dropout before the adapters", low=0, high=0.9)
    lora_targets: str = option("q_proj,v_proj", "linear layers that carry adapters, by the end of their name")
    shared_expert: bool = option(True, "one more adapter, on for every utterance, beneath the routed experts")
    shared_r: int | None = option(None, "rank of the shared adapter (none: lora_r)", low=1)

    @property
    def shared_rank(self) -> int:
        """Rank of the shared adapter, 0 without one."""
        return (self.shared_r or self.lora_r) if self.shared_expert else 0

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the layers that carry adapters."""
        return tuple(name.strip() for name in self.lora_targets.split(",") if name.strip())


class RoutedLinear(nn.Module):
    """A frozen Linear with E routed experts and a shared adapter.

    Parameters: `lora_A` (E, r, in), `lora_B` (E, out, r), `shared_A` (r₀, in), `shared_B` (out, r₀); B starts at zero.
    """

    def __init__(self, base: nn.Linear, routing: Routing, n_experts: int, options: AdapterOptions) -> None:
        super().__init__()
        self.base_layer, self.routing, self.n_experts, self.r = base, routing, n_experts, options.lora_r
        self.scaling = options.lora_alpha / options.lora_r
        self.dropout = nn.Dropout(options.lora_dropout)
        device = base.weight.device
        self.lora_A = _zeros(device, n_experts, options.lora_r, base.in_features)
        self.lora_B = _zeros(device, n_experts, base.out_features, options.lora_r)
        self.shared_A = _zeros(device, options.shared_rank, base.in_features)
        self.shared_B = _zeros(device, base.out_features, options.shared_rank)
        for matrix in [*self.lora_A.data, self.shared_A.data]:
            if matrix.numel():
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as PEFT initialises A

    def forward(self, x: Tensor) -> Tensor:
        """(B·n, …, in) → (B·n, …, out), where n rows belong to each routed utterance (beams)."""
        y = self.base_layer(x)
        if not self.routing.on:
            return y
        rows = self.dropout(x).flatten(1, -2) if x.dim() > 2 else self.dropout(x)[:, None]  # (R, T, in)
        rows = rows.to(_compute_dtype(rows, self.lora_A))
        return y + self._delta(rows).view(y.shape).to(y.dtype)

    def _delta(self, rows: Tensor) -> Tensor:
        """What the adapters add, (R, T, out); zero without any. The scale goes into the small matrices, never over (R, T, out)."""
        if not self.n_experts or self.routing.weights is None:
            return self._shared(rows)
        routing = self.routing.rows(rows.shape[0])
        if rows.shape[1] == 1 and not torch.is_grad_enabled() and not self._is_dense(routing):
            return _product(rows, *self.routing.keep((id(self), len(rows), rows.dtype), lambda: self._joined(routing, rows.dtype)))
        mixture = self._mixture(rows, routing)
        return mixture + self._shared(rows) if self.shared_A.numel() else mixture

    def _shared(self, rows: Tensor) -> Tensor:
        return F.linear(self.scaling * F.linear(rows, self.shared_A), self.shared_B)

    def _mixture(self, rows: Tensor, routing: RoutingWeights) -> Tensor:
        if self._is_dense(routing):
            return dense_mixture(rows, self.lora_A, self.lora_B, self.scaling * routing.weights)
        indices, values = routing.selected()
        return gather_mixture(rows, self.lora_A, self.lora_B, indices, self.scaling * values)

    def _is_dense(self, routing: RoutingWeights) -> bool:
        return routing.top_k > DENSE_SHARE * self.n_experts

    def _joined(self, routing: RoutingWeights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The chosen experts and the shared adapter as one adapter per utterance, for decoding token by token."""
        indices, values = routing.selected()
        a, b = gather_adapters(self.lora_A, self.lora_B, indices, self.scaling * values, dtype)
        shared_a, shared_b = self.shared_A, self.scaling * self.shared_B.T  # (r₀, in), (r₀, out)
        joined = (torch.cat([shared.to(dtype).expand(len(own), -1, -1), own], 1) for shared, own in ((shared_a, a), (shared_b, b)))
        return tuple(joined)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some model code asks a Linear for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base_layer.bias

    def extra_repr(self) -> str:
        return f"experts={self.n_experts}, r={self.r}, shared_r={self.shared_A.shape[0]}, scaling={self.scaling:g}"


def dense_mixture(x: Tensor, lora_a: Tensor, lora_b: Tensor, weights: Tensor) -> Tensor:
    """Σ_e w[b, e] B_e A_e x with all experts in two products; for soft routing.

    Args:
        x: (B, T, in); lora_a: (E, r, in); lora_b: (E, out, r); weights: (B, E).

    Returns:
        (B, T, out)
    """
    n_experts, r, n_in = lora_a.shape
    hidden = F.linear(x, lora_a.reshape(n_experts * r, n_in))  # (B, T, E·r)
    weight = weights.to(hidden.dtype).repeat_interleave(r, dim=1)[:, None]  # (B, 1, E·r)
    return F.linear(hidden * weight, lora_b.transpose(0, 1).reshape(-1, n_experts * r))


def gather_mixture(x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """The same with only the chosen experts of each utterance; cheap when few are chosen.

    Args:
        indices, values: (B, k), the chosen experts and their weights.
    """
    return _product(x, *gather_adapters(lora_a, lora_b, indices, values, x.dtype))


def gather_adapters(lora_a: Tensor, lora_b: Tensor, indices: Tensor, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The chosen experts of each utterance as one adapter of rank k·r: (B, k·r, in) and, weighted, (B, k·r, out)."""
    n_rows, k = indices.shape
    r, n_in = lora_a.shape[1:]
    a = lora_a[indices].reshape(n_rows, k * r, n_in)
    b = lora_b[indices] * values[:, :, None, None]  # (B, k, out, r): weighting the small matrix is cheapest
    return a.to(dtype), b.transpose(2, 3).reshape(n_rows, k * r, -1).to(dtype)


def _product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(x, a.transpose(1, 2)), b)  # (B, T, in) → (B, T, out)


def attach(base: nn.Module, n_experts: int, options: AdapterOptions, first_encoder_layer: int = 0) -> Routing:
    """Put adapters on the target layers of a frozen model; encoder layers below `first_encoder_layer` get none.

    Raises:
        ValueError: no layer of the model has one of the target names, or there are no targets.
    """
    _check_targets(base, options)
    routing = Routing()
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name.endswith(options.targets)]
    for name in names:
        if _encoder_layer(name) < first_encoder_layer:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, RoutedLinear(base.get_submodule(name), routing, n_experts, options))
    return routing


def matched_rank(base: nn.Module, options: AdapterOptions, n_trainable: int) -> int:
    """Rank at which one adapter on all target layers of a bare model has `n_trainable` parameters, to the nearest whole rank."""
    layers = [module for name, module in base.named_modules() if isinstance(module, nn.Linear) and name.endswith(options.targets)]
    return max(1, round(n_trainable / sum(layer.in_features + layer.out_features for layer in layers)))


def routed_layers(model: nn.Module) -> list[tuple[str, RoutedLinear]]:
    """Name and module of every layer that carries adapters."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, RoutedLinear)]


def _check_targets(base: nn.Module, options: AdapterOptions) -> None:
    linears = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)})
    unknown = [target for target in options.targets if not any(name.endswith(target) for name in linears)]
    if unknown or not options.targets:
        raise ValueError(
            f"lora_targets={options.lora_targets!r}: no Linear of the base model is called {' or '.join(unknown) or 'so'}; "
            f"there are {', '.join(linears)}"
        )


def _zeros(device: torch.device, *shape: int) -> nn.Parameter:
    zeros = torch.zeros(*shape, device=device)
    return nn.Parameter(zeros, requires_grad=zeros.numel() > 0)  # an absent adapter has nothing to train


def _encoder_layer(name: str) -> float:
    found = re.search(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else math.inf


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast else weight.dtype
