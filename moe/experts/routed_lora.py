"""Routed LoRA: a frozen Linear, a shared adapter that is always on, and E experts mixed per utterance in one batched product.

For utterance b:  y = W x + s₀·B₀A₀ x + Σ_e w[b, e]·s·B_e A_e x   (LoRA: Hu et al. 2021, arXiv:2106.09685)
"""

import dataclasses
import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.options import Options, listed, option, to_text
from moe.routing.weights import Routing, RoutingWeights

DIVIDED = ("lora_r", "shared_r", "shared_expert")  # what adapter_rank and shared_share say together
ALL_LINEARS = "q_proj,k_proj,v_proj,out_proj,fc1,fc2"  # of a Whisper's layers
BOTH, PARTS = "both", ("encoder", "decoder")
FEW_POSITIONS = 32  # so many at most are tokens of a prompt or hypotheses of an utterance, read step by step
DENSE_SHARE = 0.5  # from this share of experts in use, one dense product over all is cheaper than gathering


@dataclasses.dataclass(frozen=True)
class LoraOptions(Options):
    """Shape of the experts and of the shared adapter beneath them, wherever they sit."""

    lora_r: int = option(4, "rank of each expert", low=1)
    lora_alpha: float = option(8.0, "LoRA alpha of each expert; the scale alpha / lora_r is the shared adapter's too", above=0)
    rank_stabilised: bool = option(
        False, "scale each adapter by alpha / √rank of its own (rsLoRA), so that another rank needs no other learning rate"
    )
    lora_dropout: float = option(0.0, "dropout before the adapters", low=0, high=0.9)
    shared_expert: bool = option(True, "one more adapter, on for every utterance, beneath the routed experts")
    shared_r: int | None = option(32, "rank of the shared adapter (none: lora_r)", low=1)
    adapter_rank: int | None = option(None, "instead of lora_r and shared_r: their total in a layer, all experts together", low=1)
    shared_share: float = option(0.57, "part of adapter_rank that the shared adapter gets, to whole ranks", low=0, high=0.99)

    def faults(self) -> list[str]:
        """A rank without its adapter, and ranks that are said twice."""
        found = []
        if self.shared_r is not None and self.is_changed("shared_r") and not self.shared_expert:
            found.append(f"shared_r={self.shared_r}: shared_expert=false has no shared adapter")
        if self.adapter_rank is not None:
            said = [f"{name}={to_text(getattr(self, name))}" for name in DIVIDED if self.is_changed(name)]
            found += [f"adapter_rank={self.adapter_rank} with {', '.join(said)}: shared_share divides it"] if said else []
        return found

    def idle(self) -> dict[str, str]:
        """A share of nothing."""
        return {"shared_share": "needs adapter_rank"} if self.adapter_rank is None else {}

    def scale(self, rank: int) -> float:
        """What an adapter of a rank is multiplied by (rank-stabilised: Kalajdzievski 2023, arXiv:2312.03732)."""
        return self.lora_alpha / (math.sqrt(max(1, rank)) if self.rank_stabilised else self.lora_r)

    @property
    def shared_rank(self) -> int:
        """Rank of the shared adapter, 0 without one."""
        return (self.shared_r or self.lora_r) if self.shared_expert else 0


@dataclasses.dataclass(frozen=True)
class AdapterOptions(LoraOptions):
    """Experts and shared adapter, and the layers that carry them."""

    lora_targets: str = option(ALL_LINEARS, "linear layers that carry adapters, by the end of their name")
    lora_part: str = option(BOTH, "part of the base model whose layers carry adapters", choices=(BOTH, *PARTS))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the layers that carry adapters."""
        return tuple(listed(self.lora_targets))

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the base model that carry adapters."""
        return PARTS if self.lora_part == BOTH else (self.lora_part,)

    def is_in_part(self, name: str) -> bool:
        """Whether a module of this full name is in the part that carries adapters."""
        return self.lora_part == BOTH or f"{self.lora_part}." in name

    def carries(self, name: str) -> bool:
        """Whether the Linear of this full name carries adapters."""
        return name.endswith(self.targets) and self.is_in_part(name)


class RoutedLinear(nn.Module):
    """A frozen Linear with E routed experts and a shared adapter.

    Parameters: `lora_A` (E, r, in), `lora_B` (E, out, r), `shared_A` (r₀, in), `shared_B` (out, r₀); B starts at zero.
    """

    def __init__(self, base: nn.Linear, routing: Routing, n_experts: int, options: AdapterOptions) -> None:
        super().__init__()
        self.base_layer, self.routing, self.n_experts, self.r = base, routing, n_experts, options.lora_r
        self.scaling, self.shared_scaling = options.scale(options.lora_r), options.scale(options.shared_rank)
        self.rank_stabilised = options.rank_stabilised
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
        if not self.routing.on:
            return self.base_layer(x)
        if not self.n_experts or self.routing.weights is None:
            return self._with_shared(x)
        y, x = self.base_layer(x), self._adapter_input(x)
        hidden, b = self._adapted(x.flatten(1, -2) if x.dim() > 2 else x[:, None])
        if y.dim() != 3 or y.dtype != hidden.dtype:
            return y + torch.bmm(hidden, b).view(y.shape).to(y.dtype)
        if torch.is_grad_enabled():
            return torch.baddbmm(y, hidden, b)  # y is a view: to add to it in place costs three copies in the backward pass
        return y.baddbmm_(hidden, b)  # nobody else holds y: one pass over it, not three

    def _with_shared(self, x: Tensor) -> Tensor:
        """The shared adapter alone, the same for all rows: (R, …, in) → (R, …, out)."""
        rows = x.flatten(0, -2)  # (N, in)
        y, hidden = self.base_layer(rows), F.linear(self._adapter_input(rows), self.shared_A)  # (N, out), (N, r₀)
        b = self.shared_B.T.to(hidden.dtype)
        if y.dtype == hidden.dtype:
            y.addmm_(hidden, b, alpha=self.shared_scaling)
        else:
            y = y + (self.shared_scaling * (hidden @ b)).to(y.dtype)
        return y.view(*x.shape[:-1], -1)

    def _adapter_input(self, x: Tensor) -> Tensor:
        """What adapters read of the layer's input."""
        x = self.dropout(x)
        return x.to(_compute_dtype(x, self.lora_A))

    def _adapted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All adapters of each row (R, T, in) as one: A x (R, T, n) and what brings it back, (R, n, out); routing and scale are in it."""
        routing = self.routing.rows(len(rows))
        if routing.top_k > DENSE_SHARE * self.n_experts:
            return self._dense(rows, routing)
        if rows.shape[1] <= FEW_POSITIONS and not torch.is_grad_enabled():  # decoding token by token
            a, b = self.routing.keep((id(self), len(rows), rows.dtype), lambda: self._gathered(len(rows), routing, rows.dtype))
        else:
            a, b = self._gathered(len(rows), routing, rows.dtype)
        return torch.bmm(rows, a.transpose(1, 2)), b

    def _gathered(self, n_rows: int, routing: RoutingWeights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (R, n, in) and weighted B (R, n, out) of the shared adapter and the chosen experts; for few of many."""
        indices, values = routing.selected()
        chosen_a, chosen_b = gather_adapters(self.lora_A, self.lora_B, indices, self.scaling * values)
        shared_a, shared_b = self.shared_A.expand(n_rows, -1, -1), (self.shared_scaling * self.shared_B.T).expand(n_rows, -1, -1)
        return torch.cat([shared_a, chosen_a], 1).to(dtype), torch.cat([shared_b, chosen_b], 1).to(dtype)

    def _dense(self, rows: Tensor, routing: RoutingWeights) -> tuple[Tensor, Tensor]:
        """The same with every expert; for soft routing."""
        a, b, weights = dense_adapters(self.lora_A, self.lora_B, routing.weights)
        shared = weights.new_full((len(rows), len(self.shared_A)), self.shared_scaling)
        a, b = torch.cat([self.shared_A, a]), torch.cat([self.shared_B.T, b])
        weights = torch.cat([shared, self.scaling * weights], 1)[:, None]  # (R, 1, n)
        return F.linear(rows, a.to(rows.dtype)) * weights.to(rows.dtype), b.to(rows.dtype).expand(len(rows), -1, -1)

    @property
    def weight(self) -> Tensor:
        """The frozen weight (out, in): some model code asks a Linear for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (out,)."""
        return self.base_layer.bias

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"experts={self.n_experts}, r={self.r}, shared_r={self.shared_A.shape[0]}, scaling={self.scaling:g}"


def dense_adapters(lora_a: Tensor, lora_b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All experts as one adapter of rank E·r: A (E·r, in), B (E·r, out), and each utterance's weights of its ranks, (B, E·r).

    Args:
        lora_a: (E, r, in); lora_b: (E, out, r); weights: (B, E).
    """
    n_experts, r, n_in = lora_a.shape
    return lora_a.reshape(n_experts * r, n_in), lora_b.transpose(1, 2).flatten(0, 1), weights.repeat_interleave(r, 1)


def gather_adapters(lora_a: Tensor, lora_b: Tensor, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen experts of each utterance as one adapter of rank k·r: A (B, k·r, in) and, weighted, B (B, k·r, out).

    Args:
        lora_a: (E, r, in); lora_b: (E, out, r).
        indices, values: (B, k), the chosen experts and their weights.
    """
    n_rows, k = indices.shape
    _, r, n_in = lora_a.shape
    chosen = indices.flatten()  # its backward adds rows, which is cheaper than that of an index in brackets
    a = lora_a.index_select(0, chosen).view(n_rows, k * r, n_in)
    b = lora_b.index_select(0, chosen).transpose(1, 2) * values.flatten()[:, None, None]  # weighting the small matrix is cheapest
    return a, b.reshape(n_rows, k * r, lora_b.shape[1])


def attach(base: nn.Module, n_experts: int, options: AdapterOptions, first_encoder_layer: int = 0) -> Routing:
    """Put adapters on the target layers of a frozen model; encoder layers below `first_encoder_layer` get none.

    Raises:
        ValueError: no layer of the model has one of the target names, or there are no targets.
    """
    _check_targets(base, options)
    routing = Routing()
    linears = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        if not options.carries(name) or encoder_layer(name) < first_encoder_layer:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, RoutedLinear(linear, routing, n_experts, options))
    return routing


def matched_rank(base: nn.Module, options: AdapterOptions, n_trainable: int) -> int:
    """Rank at which one adapter on all target layers of a bare model has `n_trainable` parameters, to the nearest whole rank."""
    layers = [module for name, module in base.named_modules() if isinstance(module, nn.Linear) and options.carries(name)]
    return max(1, round(n_trainable / sum(layer.in_features + layer.out_features for layer in layers)))


def routed_layers(model: nn.Module) -> list[tuple[str, RoutedLinear]]:
    """Name and module of every layer that carries adapters."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, RoutedLinear)]


def _check_targets(base: nn.Module, options: AdapterOptions) -> None:
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and options.is_in_part(name)]
    linears = sorted({name.rpartition(".")[2] for name in names})
    unknown = [target for target in options.targets if not any(name.endswith(target) for name in linears)]
    if unknown or not options.targets:
        where = "" if options.lora_part == BOTH else f"'s {options.lora_part}"
        raise ValueError(
            f"lora_targets={options.lora_targets!r}: no Linear of the base model{where} is called {' or '.join(unknown) or 'so'}; "
            f"there are {', '.join(linears)}"
        )


def _zeros(device: torch.device, *shape: int) -> nn.Parameter:
    zeros = torch.zeros(*shape, device=device)
    return nn.Parameter(zeros, requires_grad=zeros.numel() > 0)  # an absent adapter has nothing to train


def encoder_layer(name: str) -> float:
    """Number of the encoder layer that a module is in, from its name; infinite outside the encoder's layers."""
    found = re.search(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else math.inf


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast else weight.dtype
