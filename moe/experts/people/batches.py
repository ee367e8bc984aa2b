"""Utterances of people as batches: those of one length bucket together, whoever said them."""

from collections.abc import Sequence

from moe.audio.sampling import SAMPLE_RATE
from moe.recognition.decoding import device_of
from moe.system import Batch, System
from moe.training.batches import Draw, collate, to_device
from moe.training.dataset import SpeechDataset

MOST_AT_ONCE = 32  # utterances in a forward pass


def length_chunks(items: Sequence[tuple[int, Draw]], dataset: SpeechDataset) -> list[list[tuple[int, Draw]]]:
    """Numbered utterances of one length bucket together: nobody's padding depends on the others."""
    groups: dict[int, list[tuple[int, Draw]]] = {}
    for item in items:
        bucket = dataset.inputs.length(round(dataset.rows[item[1].index]["duration_s"] * SAMPLE_RATE))
        groups.setdefault(bucket, []).append(item)
    return [group[at : at + MOST_AT_ONCE] for _, group in sorted(groups.items()) for at in range(0, len(group), MOST_AT_ONCE)]


def batch_of(system: System, dataset: SpeechDataset, draws: Sequence[Draw]) -> Batch:
    """Utterances of one length bucket, where the system computes."""
    return to_device(collate(dataset, [dataset[draw] for draw in draws]), device_of(system))
