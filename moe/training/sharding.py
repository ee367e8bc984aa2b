"""A model of which every process of a training holds a part: the layers sharded by torch's `fully_shard` (FSDP2), the rest whole.

Frozen matrices, stacked experts, their gradients and the optimizer's moments are cut along their first dimension; a layer is whole only
while it computes. What lies outside the layers (tokens, gate, projector) every process holds. Whatever judges or changes the model between
updates meets it whole, and so does whoever trained it: `sharded` undoes everything at the end.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from moe.options import option
from moe.system import ParameterGroup
from moe.training import processes
from moe.training.processes import ProcessOptions

DDP, FSDP = "ddp", "fsdp"
HOOKS = "_hooks"  # how the dictionaries of a module's hooks end


@dataclasses.dataclass(frozen=True)
class ShardingOptions(ProcessOptions):
    """How the processes of a training share its work, and its model."""

    group = "compute"

    strategy: str = option(
        DDP,
        "what each of several processes holds in training: the whole model (ddp), or a part of each layer (fsdp), for a model that one "
        "GPU has no room to train",
        choices=(DDP, FSDP),
    )

    not_in_fingerprint = frozenset({"strategy"})

    def faults(self) -> list[str]:
        """Parts of a model without GPUs to hold them, or with nobody to hold the others."""
        if self.strategy == DDP:
            return []
        if not self.is_placed and not torch.cuda.is_available():
            return [f"strategy={FSDP} shards over GPUs; this machine has none; set strategy={DDP}"]
        if self.is_placed and not self.gpus_per_process:
            return [f"strategy={FSDP} shards over GPUs; gpus_per_process=0 gives its processes none; set strategy={DDP}"]
        if self.num_processes == 1:
            return [f"strategy={FSDP} shards over several processes; num_processes=1 is one; set strategy={DDP}"]
        return []


@contextlib.contextmanager
def sharded(model: nn.Module, strategy: str, groups: Sequence[ParameterGroup]) -> Iterator[list[ParameterGroup]]:
    """Inside, the layers are cut over the processes; the groups with what trains there. After it all is as it was, with the weights of then.

    A block that fails leaves the parts as they are: to gather them needs all processes.

    Raises:
        ValueError: the model has no layers that could be cut.
    """
    if strategy == DDP or processes.n_processes() == 1:
        yield list(groups)
        return
    places = [_Place(each, set(vars(each)), _hooks_of(each), type(each)) for each in model.modules()]
    held = {(place.module, name): each for place in places for name, each in _own(place.module)}
    _shard(model)
    added = [set(vars(place.module)) - place.attributes for place in places]
    cut = {each: getattr(module, name) for (module, name), each in held.items()}
    for each, part in cut.items():
        if part is not each:
            each.data = each.data.new_empty(0)  # the parts hold it
    yield [dataclasses.replace(group, parameters=tuple(cut[each] for each in group.parameters)) for group in groups]
    for each, part in cut.items():
        if part is not each:
            each.data = whole(part.detach())
    for place, names in zip(places, added, strict=True):
        place.restore(names)
    for (module, name), each in held.items():
        setattr(module, name, each)


@contextlib.contextmanager
def whole_model(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all of the model, which may be asked and changed as if it had never been cut."""
    if not isinstance(model, FSDPModule):
        yield
        return
    layers = [each for each in model.modules() if isinstance(each, FSDPModule) and each is not model]
    parts = dict(model.named_parameters())
    model._get_fsdp_state()._lazy_init()  # else the first layer that is asked by itself would take itself for the whole
    for layer in layers:
        layer.unshard()
        layer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        trained = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
        model.reset_iter_state()  # cuts it again, and forgets in which order layers were asked: another one in each process
        for layer in layers:
            layer.set_reshard_after_forward(True)
        with torch.no_grad():
            for name, value in trained.items():
                parts[name].copy_(as_held(value, parts[name]))


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes hold parts of the model now."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor (n, …) of which each process holds a part, gathered in all of them; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_held(value: Tensor, held: Tensor) -> Tensor:
    """A whole tensor (n, …), cut as another one is; nothing is sent."""
    if not isinstance(held, DTensor) or value.shape != held.shape:
        return value
    return distribute_tensor(value.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def average_gradients(model: nn.Module) -> None:
    """Average the gradients of what every process holds whole beside sharded layers; those of the layers are averaged already."""
    for each in model.parameters():
        if each.grad is not None and not isinstance(each.grad, DTensor):
            distributed.all_reduce(each.grad)  # gloo knows no average
            each.grad /= processes.n_processes()


@dataclasses.dataclass(frozen=True)
class _Place:
    """A module as it was before it was sharded: `fully_shard` puts another class, hooks and attributes there, and takes none back."""

    module: nn.Module
    attributes: set[str]
    hooks: dict[str, dict[Any, Any]]
    kind: type[nn.Module]

    def restore(self, added: set[str]) -> None:
        self.module.__class__ = self.kind
        for name in added:
            vars(self.module).pop(name, None)
        for name, before in self.hooks.items():
            hooks = vars(self.module)[name]
            hooks.clear()
            hooks.update(before)


def _shard(model: nn.Module) -> None:
    layers = _layers(model)
    if not layers:
        raise ValueError("strategy=fsdp: the model has no layers that could be sharded; set strategy=ddp")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (processes.n_processes(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params={each for each in layer.parameters() if not each.numel()})
    inside = {each for layer in layers for each in layer.parameters()}
    fully_shard(model, mesh=mesh, ignored_params={each for each in model.parameters() if each not in inside})


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the transformers models inside, as these name them."""
    models = [each for each in model.modules() if isinstance(each, PreTrainedModel)]
    names = {name for each in models for name in each._no_split_modules or ()}
    return [each for each in model.modules() if type(each).__name__ in names]


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False, remove_duplicate=False))


def _hooks_of(module: nn.Module) -> dict[str, dict[Any, Any]]:
    return {name: dict(value) for name, value in vars(module).items() if name.endswith(HOOKS) and isinstance(value, dict)}
