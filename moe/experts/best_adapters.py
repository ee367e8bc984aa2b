"""The best state of every adapter, kept while experts train."""

from typing import Any

import torch
from torch import Tensor

from moe.experts.adapter_folders import SHARED, adapter_names, slots
from moe.experts.mixture import Mixture
from moe.experts.routed_lora import routed_layers

State = dict[str, Tensor]


class BestAdapters:
    """The best state of every expert by its own WER, and of all adapters together by the whole WER."""

    def __init__(self, model: Mixture) -> None:
        self.model = model
        self.wer, self.epoch = float("inf"), -1
        self.whole: dict[str, State] = {}
        self.each: dict[str, tuple[float, int, State]] = {}

    def update(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keep what is better than before; ties keep the earlier."""
        names = adapter_names(routed_layers(self.model.base)[0][1])
        if metrics["wer"] < self.wer:
            self.wer, self.epoch = metrics["wer"], epoch
            self.whole = {name: adapter_state(self.model, name) for name in names}
        for name in names:
            wer = metrics.get(f"wer/{name}", metrics["wer"])  # the shared adapter serves all
            if name not in self.each or wer < self.each[name][0]:
                self.each[name] = wer, epoch, adapter_state(self.model, name)

    def all_stopped(self, epoch: int, patience: int) -> bool:
        """Has every expert gone without improvement for `patience` epochs?"""
        return all(epoch - best >= patience for name, (_, best, _) in self.each.items() if name != SHARED)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is kept, as a training checkpoint holds it: tensors are named `whole/<adapter>/<matrix>` and `each/<adapter>/<matrix>`."""
        kept = [("whole", name, state) for name, state in self.whole.items()] + [
            ("each", name, entry[2]) for name, entry in self.each.items()
        ]
        tensors = {f"{kind}/{name}/{key}": tensor for kind, name, state in kept for key, tensor in state.items()}
        return {"wer": self.wer, "epoch": self.epoch, "each": {name: entry[:2] for name, entry in self.each.items()}}, tensors

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Keep again what `state` gave."""
        states: dict[tuple[str, str], State] = {}
        for path, tensor in tensors.items():
            kind, name, key = path.split("/", 2)
            states.setdefault((kind, name), {})[key] = tensor
        self.wer, self.epoch = values["wer"], values["epoch"]
        self.whole = {name: state for (kind, name), state in states.items() if kind == "whole"}
        self.each = {name: (wer, epoch, states["each", name]) for name, (wer, epoch) in values["each"].items()}

    def restore_each(self) -> None:
        """Every adapter at its own best; the shared one at the best whole epoch, which the experts sit on."""
        for name, (_, _, state) in self.each.items():
            restore_adapter(self.model, name, self.whole[SHARED] if name == SHARED else state)

    def restore_epoch(self) -> None:
        """All adapters as they were after the best epoch."""
        for name, state in self.whole.items():
            restore_adapter(self.model, name, state)


def adapter_state(model: Mixture, adapter: str) -> State:
    """A copy of one adapter's matrices."""
    state: State = {}
    for name, lora_a, lora_b in slots(model.base, adapter):
        state |= {f"{name}.A": lora_a.detach().clone(), f"{name}.B": lora_b.detach().clone()}
    return state


@torch.no_grad()
def restore_adapter(model: Mixture, adapter: str, state: State) -> None:
    """Put a copy of an adapter back."""
    for name, lora_a, lora_b in slots(model.base, adapter):
        lora_a.copy_(state[f"{name}.A"])
        lora_b.copy_(state[f"{name}.B"])
