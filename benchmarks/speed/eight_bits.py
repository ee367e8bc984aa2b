"""A model whose frozen matrices are held in 8 bits, to see what that would bring: torch's own oneDNN kernels, adapters in float32.

Weights are rounded by output, activations by row at every call, as CTranslate2 does. (One scale for a whole batch, as torch's dynamic
quantisation takes, would let a hypothesis depend on the utterances beside it.)
"""

import torch
from torch import Tensor, nn

MOST = 127  # of 8 bits with a sign


class EightBits(nn.Module):
    """A Linear in 8 bits: (…, in) → (…, out) in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach(), linear.bias
        self.scale = weight.abs().amax(1).clamp_min(1e-8) / MOST  # (out,)
        self.zero = torch.zeros(len(weight), dtype=torch.long)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.laid_out = torch.ops.onednn.qlinear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        most = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True).clamp_min(1e-8)  # (…, 1)
        rounded = (x * (MOST / most)).round_().to(torch.int8)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1 / MOST, 0, self.laid_out, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return found.mul_(most) if self.bias is None else torch.addcmul(self.bias, found, most)


def hold_in_eight_bits(model: nn.Module) -> None:
    """Put every frozen Linear of a model into 8 bits, those below adapters too."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not module.weight.requires_grad:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, EightBits(module))
