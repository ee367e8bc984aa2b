"""Utterances → hypotheses: batched by length, cached, in every way that is asked for.

A batch holds utterances of one length bucket, so no hypothesis depends on the batch size or on what stands beside it; batches are made
in one order whatever the order of the utterances. With a folder to keep them in, batches done are not done again.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from moe.progress import progress
from moe.recognition.hypothesis_store import BatchStore
from moe.system import Ask, DecodingOptions, Hypothesis, System
from moe.training import blocks, processes
from moe.training.batches import Examples, collate, length_batches, to_device
from moe.training.cost import compute_clock
from moe.training.read_ahead import fetched_ahead

USUAL = "usual"  # name of decoding as the recogniser was trained to


def decode(
    system: System,
    dataset: Examples,
    options: DecodingOptions,
    ask: Ask | None = None,
    with_loss: bool = False,
    title: str | None = None,
    store: BatchStore | None = None,
) -> list[Hypothesis]:
    """Hypotheses of a whole dataset, in its order; `ask` None asks for nothing. See `decode_ways`."""
    return decode_ways(system, dataset, options, {USUAL: ask or system.ask_type()}, with_loss, title, store)[USUAL]


@torch.inference_mode()
def decode_ways(
    system: System,
    dataset: Examples,
    options: DecodingOptions,
    asks: Mapping[str, Ask],
    with_loss: bool = False,
    title: str | None = None,
    store: BatchStore | None = None,
) -> dict[str, list[Hypothesis]]:
    """Hypotheses of a whole dataset, in its order, under several asks by name; features are made once.

    Of several processes each decodes the batches dealt to it, and all get all hypotheses.

    Args:
        with_loss: also the reference's loss (one more pass).
        title: of a progress bar; None shows none.
        store: where batches are kept as they are done; those an earlier call left there are taken as they are, and one that fails stops
            no other (see `moe.training.blocks`).

    Raises:
        RuntimeError: utterances of a store that failed twice.
    """
    system.module.eval()
    store = store or BatchStore(None)
    ids_of = dataset.utterance_ids
    batches = length_batches(dataset, options.decoding_batch_size)
    own = {number: [ids_of[index] for index in batches[number]] for number in blocks.dealt(len(batches))}
    done: dict[int, dict[str, list[Hypothesis]]] = {}
    order, n_own = {number: place for place, number in enumerate(own)}, sum(map(len, own.values()))
    read = [() if store.has(number) else batches[number] for number in own]
    with progress(title or "", n_own, "utterances", shown=title is not None) as bar, fetched_ahead(dataset, read) as reached:

        def do(number: int) -> None:
            reached(order[number])
            parts = store.read(number, own[number], list(asks))
            if parts is None:
                started = compute_clock()
                parts = _decode_batch(system, dataset, batches[number].tolist(), options, asks, with_loss)
                store.write(number, parts, compute_clock() - started)
            done[number] = parts
            bar.update(len(own[number]))

        blocks.do_each(own, do, store.folder)
    found: dict[str, list[Hypothesis]] = {name: [Hypothesis(utterance_id, "") for utterance_id in ids_of] for name in asks}
    for number, parts in ((number, parts) for share in processes.gathered(done) for number, parts in share.items()):
        for name, part in parts.items():
            for index, hypothesis in zip(batches[number], part, strict=True):
                found[name][index] = hypothesis
    return found


def _decode_batch(
    system: System, dataset: Examples, indices: Sequence[int], options: DecodingOptions, asks: Mapping[str, Ask], with_loss: bool
) -> dict[str, list[Hypothesis]]:
    batch = to_device(collate(dataset, [dataset[index] for index in indices]), device_of(system))
    return {name: system.decode(batch, options, ask, with_loss) for name, ask in asks.items()}


def device_of(system: System) -> torch.device:
    """Where a system computes."""
    return next(system.module.parameters()).device


def confidence(hypotheses: Sequence[Hypothesis]) -> float:
    """Geometric mean of the probabilities of all tokens of these hypotheses; 0 where there are none."""
    n_tokens = sum(hypothesis.n_tokens for hypothesis in hypotheses)
    total = sum(hypothesis.mean_logprob * hypothesis.n_tokens for hypothesis in hypotheses if hypothesis.n_tokens)
    return math.exp(total / n_tokens) if n_tokens else 0.0
