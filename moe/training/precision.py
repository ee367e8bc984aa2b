"""Half precision and the device: what the machine has, what is computed in it, and the frozen weights that are held in it.

What trains is float32 always; under autocast frozen matrices are rounded at every use, so holding them rounded changes nothing but
their size and the time the rounding takes. (An embedding is rounded by being held so, as every half-precision Whisper's is.)
"""

import contextlib
import dataclasses
import logging

import torch
from torch import nn

from moe.options import Options, option

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # of x86; bf16 is ARM's
LOG = logging.getLogger(__name__)
MATRICES = (nn.Linear, nn.Conv1d)  # what autocast computes in half precision; positions and norms stay as they are


@dataclasses.dataclass(frozen=True)
class PrecisionOptions(Options):
    """What a step computes in."""

    group = "compute"

    fp16: bool | None = option(None, "half precision: bf16 where the machine has it, else fp16 (none: on a GPU)", common=True)
    no_fp16: bool = option(False, "never half precision")

    def faults(self) -> list[str]:
        return ["fp16=true and no_fp16=true contradict each other"] if self.fp16 and self.no_fp16 else []


def precision(options: PrecisionOptions) -> str:
    """fp32, bf16 or fp16, by option and capability: CUDA takes half precision unless it is switched off, a CPU only where it is switched on."""
    wanted = torch.cuda.is_available() if options.fp16 is None else options.fp16
    if options.no_fp16 or not wanted:
        return "fp32"
    if not torch.cuda.is_available():
        if not any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS):
            LOG.warning(
                "fp16=true: this processor has no instructions for bf16, so half precision is many times slower here; leave it out"
            )
        return "bf16"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def fastest_device() -> torch.device:
    """Where a model computes that no Trainer places."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computing(device: torch.device, name: str) -> contextlib.AbstractContextManager:
    """Autocast to a half precision; for float32 what is around it stays in force."""
    return contextlib.nullcontext() if name == "fp32" else torch.autocast(device.type, DTYPES[name])


def hold_frozen(model: nn.Module, name: str) -> None:
    """Hold the frozen matrices of a model in a precision; the token table with them, where it is the head too."""
    for module in model.modules():
        own = list(module.parameters(recurse=False)) if isinstance(module, MATRICES) else []
        if not any(parameter.requires_grad for parameter in own):
            for parameter in own:
                parameter.data = parameter.data.to(DTYPES[name])
