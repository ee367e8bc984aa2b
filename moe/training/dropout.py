"""Dropout off for a while, whatever a module's own mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode inside the block, and in its own mode after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
