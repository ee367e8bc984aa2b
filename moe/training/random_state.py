"""The process's global random generators (Python, NumPy, torch, CUDA), read and set as values that JSON holds."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed


def generators() -> dict[str, Any]:
    """State of every global random generator, as JSON holds it."""
    version, numbers, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    state["state"] = {"key": state["state"]["key"].tolist(), "pos": state["state"]["pos"]}
    cuda = _to_text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None
    return {"python": [version, list(numbers), gauss], "numpy": state, "torch": _to_text(torch.get_rng_state()), "cuda": cuda}


def set_generators(states: dict[str, Any]) -> None:
    """Put every global random generator into a state that `generators` gave."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    mersenne = states["numpy"]["state"]
    np.random.set_state(states["numpy"] | {"state": mersenne | {"key": np.array(mersenne["key"], np.uint32)}})
    torch.set_rng_state(_from_text(states["torch"]))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_text(states["cuda"]))


def seed_update(seed: int, update: int, process: int) -> None:
    """What a process beside the first draws in an update, as in dropout, follows from these alone, so that no checkpoint need hold it."""
    set_seed(int(np.random.SeedSequence([seed, update, process]).generate_state(1)[0]))


def _to_text(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_text(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
