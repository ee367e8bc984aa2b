"""Profiles of voices: the mean of what the gate reads of a person's utterances, which tells by its cosine whose voice another one is.

A profile is biometric: it is made only of people who agreed to one.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moe.experts.people.batches import batch_of, length_chunks
from moe.experts.people.training import PersonalSystem
from moe.training.batches import Draw
from moe.training.dataset import SpeechDataset


@torch.no_grad()
def embeddings_of(system: PersonalSystem, dataset: SpeechDataset, numbers: np.ndarray) -> Tensor:
    """What the gate reads of the utterances of these numbers (n,), (n, D)."""
    items = [(place, Draw(int(number), 0)) for place, number in enumerate(numbers)]
    parts = length_chunks(items, dataset)
    rows = torch.cat([system.embed(batch_of(system, dataset, [draw for _, draw in part])).cpu() for part in parts])
    places = torch.tensor([place for part in parts for place, _ in part])
    return torch.empty_like(rows).index_copy_(0, places, rows)


def profile_of(embeddings: Tensor) -> Tensor:
    """The profile of a person from the embeddings (n, D) of their utterances, (D,), of length 1."""
    return F.normalize(embeddings.mean(0), dim=0)


def likeness(embeddings: Tensor, profiles: Tensor) -> Tensor:
    """Cosine of embeddings (n, D) to each of profiles (P, D), (n, P)."""
    return F.normalize(embeddings, dim=1) @ profiles.T
