"""A frozen Linear laid out once as oneDNN reads it.

torch's own product of few rows and a large matrix lays the matrix out anew at every call: for eight rows and whisper-tiny's 51 865
tokens that takes longer than the product.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def packed(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function of a bare Linear on a processor, its matrix laid out; anything else as it is.

    (…, in) → (…, out), in the precision of the matrix. Later changes of the matrix are not seen.
    """
    if not (type(linear) is nn.Linear and _is_packable(linear.weight)):
        return linear
    laid_out, dtype = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()), linear.weight.dtype

    def product(x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(dtype), laid_out, linear.bias, "none", [], "")
        return found

    return product


def _is_packable(weight: Tensor) -> bool:
    """Whether oneDNN computes on this matrix what torch would; under autocast that is half precision."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    half = torch.is_autocast_enabled("cpu")
    if half:
        return weight.dtype == torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
