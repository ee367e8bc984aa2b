"""Seconds and bytes of an update and of decoding on this device, without building the whole model.

A Whisper is a stem, a head and equal layers. So a model of the same widths with one layer, and one with a few, say what the whole one
takes: time and memory grow by as much with every further layer. Weights are random; neither depends on them.
"""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from moe.experts.routed_lora import AdapterOptions
from moe.routing.gate import Gate, GateConfig
from moe.routing.options import RoutingOptions
from moe.systems.whisper_moe.cost import Adapted, Batch, Cost, update_cost
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.precision import computing

DEPTHS = (1, 3)  # layers of the models that are measured
SHARE = 0.15  # of the time allowed, for each of the measurements: two depths, training and decoding
ROUGH_S, ROUGH_FLOPS = 2.0, 5e9  # of a rough estimate: about the seconds allowed, and the operations of an update at most
DECODER_LAYER = 14  # weights of a decoder layer that a token passes, in squares of the width
N_TOKENS = (4, 12)  # of the two searches, whose difference is what a token takes


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What is trained: a base's shape, adapters, routing and the number of experts (0: one LoRA)."""

    config: WhisperConfig
    adapters: AdapterOptions
    routing: RoutingOptions
    n_experts: int

    @property
    def adapted(self) -> Adapted:
        """Where its adapters sit."""
        return Adapted.of(self.adapters, self.routing, self.n_experts)

    def cost(self, batch: Batch, precision: str) -> Cost:
        """What an update of it costs by the cost model."""
        return update_cost(self.config, self.adapted, batch, precision != "fp32")

    def shallow(self, n_layers: int) -> "Mixture":
        """The same with so many layers in encoder and decoder; the gate reads below them."""
        config = copy.deepcopy(self.config)
        config.encoder_layers = config.decoder_layers = config.num_hidden_layers = n_layers
        return dataclasses.replace(self, config=config, routing=dataclasses.replace(self.routing, gate_layer="0"))

    def build(self, device: str, precision: str) -> WhisperMoE:
        """The model with random weights, in training mode."""
        with torch.device(device):
            base = WhisperForConditionalGeneration(self.config)
        width = self.config.d_model * (2 if self.routing.pooling == "mean_std" else 1)
        gate = Gate(GateConfig(width, self.n_experts)) if self.n_experts else None
        return WhisperMoE(base, self.n_experts, self.adapters, self.routing, gate).to(device).use_precision(precision).train()


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was measured: a line each for the seconds of an update over its operations and for its bytes, and seconds of decoding.

    Attributes:
        seconds: at no layer, and per operation of the layers.
        n_bytes: at no layer, and per byte that the cost model counts; None on a CPU, whose allocator does not say.
        token_s: seconds of one decoded token of a batch, at no layer and per decoder layer.
    """

    seconds: tuple[float, float]
    n_bytes: tuple[float, float] | None
    token_s: tuple[float, float]

    def update_s(self, cost: Cost) -> float:
        """Seconds of an update."""
        return self.seconds[0] + self.seconds[1] * cost.flops

    def peak_bytes(self, cost: Cost) -> float:
        """Bytes held at the peak of an update."""
        at_none, each = self.n_bytes or (0.0, 1.0)
        return at_none + each * cost.n_bytes

    def decoding_s(self, n_tokens: int, n_layers: int) -> float:
        """Seconds in which a batch gets so many tokens, the encoder's pass apart."""
        return n_tokens * (self.token_s[0] + self.token_s[1] * n_layers)


def calibrate(
    mixture: Mixture,
    batch: Batch,
    device: str,
    precision: str = "fp32",
    allowed_s: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure shallow models of a mixture.

    Args:
        mixture: what is to be trained; its layers may be many.
        batch: the batch that training will have.
        device: `cpu` or `cuda`.
        allowed_s: about what all measurements may take together.
        clock: seconds; a benchmark on a busy machine passes the CPU time of the process.
    """
    found = [_measured(mixture.shallow(n), batch, device, precision, allowed_s * SHARE, clock) for n in DEPTHS]
    costs = [mixture.shallow(n).cost(batch, precision) for n in DEPTHS]
    return Calibration(
        _line([cost.flops for cost in costs], [each.seconds for each in found]),
        _line([cost.n_bytes for cost in costs], [each.n_bytes for each in found]) if device == "cuda" else None,
        _line(list(DEPTHS), [each.token_s for each in found]),
    )


def rough(
    mixture: Mixture, batch: Batch, device: str, precision: str = "fp32", clock: Callable[[], float] = time.perf_counter
) -> Calibration:
    """The same in about a second, without bytes: from a model of one layer, and from fewer utterances where the batch is large.

    Of the seconds of a token its layer and the head have those that their weights say.
    """
    shallow, d = mixture.shallow(1), mixture.config.d_model
    size = max(1, min(batch.size, int(batch.size * ROUGH_FLOPS / shallow.cost(batch, precision).flops)))
    small = dataclasses.replace(batch, size=size)
    found = _measured(shallow, small, device, precision, ROUGH_S * SHARE, clock)
    layer, head = DECODER_LAYER * d * d, mixture.config.vocab_size * d
    token_s = (found.token_s * head / (layer + head), found.token_s * layer / (layer + head))
    return Calibration((0.0, found.seconds / shallow.cost(small, precision).flops), None, token_s)


@dataclasses.dataclass(frozen=True)
class _Measured:
    seconds: float
    n_bytes: float
    token_s: float


def _measured(
    mixture: Mixture, batch: Batch, device: str, precision: str, allowed_s: float, clock: Callable[[], float]
) -> _Measured:
    model = mixture.build(device, precision)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    update = _update(model, batch, precision)
    seconds = _seconds(update, device, allowed_s, clock)
    n_bytes = float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0
    few, many = (_seconds(_search(model, batch, n), device, allowed_s / 2, clock) for n in N_TOKENS)
    return _Measured(seconds, n_bytes, max(0.0, many - few) / (N_TOKENS[1] - N_TOKENS[0]))


def _update(model: WhisperMoE, batch: Batch, precision: str) -> Callable[[], None]:
    mel, n_frames, labels = _inputs(model, batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    embedding = None if model.gate is None else torch.randn(batch.size, model.gate.output.in_features, device=model.device)

    def update() -> None:
        with computing(model.device, precision):
            loss = model(mel, n_frames, labels, embedding)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def _search(model: WhisperMoE, batch: Batch, n_tokens: int) -> Callable[[], None]:
    mel, n_frames, _ = _inputs(model, batch)
    start: Any = [model.base.config.decoder_start_token_id]

    def search() -> None:
        model.eval()
        with torch.no_grad():
            model.say(model.encode(model.route(mel, n_frames)), start, n_tokens, min_new=n_tokens)

    return search


def _inputs(model: WhisperMoE, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    config, device = model.base.config, model.device
    mel = torch.randn(batch.size, config.num_mel_bins, batch.n_frames, device=device)
    labels = torch.randint(0, config.vocab_size - 2, (batch.size, batch.n_labels), device=device)
    return mel, torch.full((batch.size,), batch.n_frames, device=device), labels


def _seconds(work: Callable[[], object], device: str, allowed_s: float, clock: Callable[[], float]) -> float:
    """Median seconds of a call, after one that does not count; as many calls as the time allows, three at least and twenty at most."""
    taken: list[float] = []
    while len(taken) < 4 or (sum(taken) < allowed_s and len(taken) < 21):
        start = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return statistics.median(taken[1:])


def _line(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """The line through two points: value at 0 and slope, which is never negative."""
    slope = max(1e-30, (ys[1] - ys[0]) / (xs[1] - xs[0]))
    return ys[0] - slope * xs[0], slope
