"""What the reference of each utterance costs under each expert alone, above the shared adapter: sums over its tokens, and their number."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from moe.experts.mixture import MixtureSystem
from moe.recognition.decoding import device_of
from moe.routing.weights import one_hot
from moe.system import IGNORED
from moe.training import blocks, processes
from moe.training.batches import Examples, collate, length_batches, to_device


@dataclasses.dataclass(frozen=True)
class ReferenceLosses:
    """Cross-entropy of references.

    Attributes:
        sums: over the tokens of each of N utterances under each expert, in nats, (N, n) float64.
        n_tokens: of each utterance, (N,).
    """

    sums: np.ndarray
    n_tokens: np.ndarray


@torch.inference_mode()
def reference_losses(system: MixtureSystem, dataset: Examples, experts: Sequence[int], batch_size: int) -> ReferenceLosses:
    """Losses of a dataset with the prompt and labels of training, in its order, every utterance under each of some experts by itself.

    Of several processes each takes the batches dealt to it, and all get all losses.
    """
    system.module.eval()
    ids, batches = dataset.utterance_ids, length_batches(dataset, batch_size)
    done: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def do(number: int) -> None:
        done[number] = _of_batch(system, dataset, batches[number], experts)

    blocks.do_each({number: [ids[index] for index in batches[number]] for number in blocks.dealt(len(batches))}, do, None)
    sums, n_tokens = np.zeros((len(ids), len(experts))), np.zeros(len(ids), np.int64)
    for number, (part, counts) in ((number, found) for share in processes.gathered(done) for number, found in share.items()):
        sums[batches[number]], n_tokens[batches[number]] = part, counts
    return ReferenceLosses(sums, n_tokens)


def _of_batch(
    system: MixtureSystem, dataset: Examples, indices: np.ndarray, experts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums (B, n) and numbers of tokens (B,) of a batch."""
    batch = to_device(collate(dataset, [dataset[index] for index in indices.tolist()]), device_of(system))
    n_tokens = (batch["labels"] != IGNORED).sum(1)  # (B,)
    sums = []
    for expert in experts:
        chosen = torch.full_like(n_tokens, expert)
        given = {**batch, "routing_weights": one_hot(chosen, system.module.n_experts).weights}
        sums.append(system.module(**given)["utterance_loss"].double() * n_tokens)  # the loss is a mean over the tokens
    return torch.stack(sums, 1).cpu().numpy(), n_tokens.cpu().numpy()
