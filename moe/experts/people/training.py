"""People learn at once, each for themselves: gradient, clipping and AdamW state are a person's own, and everything else is frozen.

After every pass the reference loss on a person's choosing part says whether it was worth it; the best pass is kept, the start among
them. Loss, not WER: ten utterances have too few words.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from moe.experts.people.batches import batch_of, length_chunks
from moe.experts.people.options import AS_IT_IS, AUTO, BOTH, EXPERT, WEIGHTS, PersonOptions
from moe.experts.people.parts import Parts
from moe.experts.people.person import Layout, Person, number_of
from moe.progress import progress
from moe.recognition.decoding import device_of
from moe.system import Batch, System
from moe.training.batches import Draw
from moe.training.dataset import SpeechDataset

MOST_NORM = 1.0  # of a person's gradient
N_SHIFTS = 4  # other references that an utterance's own is compared with
BETTER = 1e-6  # by which a loss must be lower, so that rounding chooses nothing


@runtime_checkable
class PersonalSystem(System, Protocol):
    """A capability: people may have an expert and weights of their own above the recogniser.

    Attributes:
        people: those in memory; `person` (B,) of a batch numbers them, −1 is nobody.
    """

    people: list[Person]

    def layout(self, targets: Sequence[str], r: int) -> Layout:
        """The layout of experts of rank r on these layers, which are made ready for them."""

    def person_losses(self, batch: Batch, people: Sequence[Person | None]) -> Tensor:
        """Loss of each utterance of a batch under its person's expert and weights, (B,), with its gradient."""

    def gate_weights(self, batch: Batch) -> Tensor:
        """The gate's weights of the routed experts for each utterance, (B, E); E = 0 where nothing is routed."""

    def embed(self, batch: Batch) -> Tensor:
        """What the gate reads of each utterance, or would read where nothing is routed, (B, D), with adapters off."""


@dataclasses.dataclass(frozen=True)
class Enrolment:
    """A person and the numbers of their utterances, by part."""

    name: str
    parts: Parts


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What became of one person.

    Attributes:
        person: as kept; `kept` says what of it is their own.
        losses: on the choosing part, of each way that was tried and `as it is`.
        candidates: what each way would have kept, by name.
    """

    person: Person
    kept: str
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    candidates: Mapping[str, Person] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recordings:
    """What people said: with what augmentation does for training, and as it is."""

    augmented: SpeechDataset
    plain: SpeechDataset


def learn_people(
    system: PersonalSystem, recordings: Recordings, enrolments: Sequence[Enrolment], options: PersonOptions, seed: int
) -> list[Learnt]:
    """What each person keeps, in the order of the enrolments."""
    system.module.eval()
    system.module.requires_grad_(False)
    training = _Training(system, recordings, enrolments, options, seed)
    nobody = [Person(each.name) for each in enrolments]
    started = training.choosing(nobody)
    found: dict[str, tuple[list[Person], list[np.ndarray]]] = {AS_IT_IS: (nobody, started)}
    for way in training.ways():
        found[way] = training.learn(way, *found[WEIGHTS if way == BOTH and WEIGHTS in found else AS_IT_IS])
    return [_kept(number, found, options) for number in range(len(enrolments))]


def _kept(number: int, found: Mapping[str, tuple[list[Person], list[np.ndarray]]], options: PersonOptions) -> Learnt:
    losses = {way: losses[number] for way, (_, losses) in found.items()}  # (n_chosen,) each
    start = losses[AS_IT_IS]
    candidates = {
        way: people[number] if _is_better(losses[way], start, options.choose_margin) else Person(people[number].name)
        for way, (people, _) in found.items()
    }
    open_to = [way for way in losses if options.learn in (AUTO, way) and candidates[way].n_numbers]
    kept = min(open_to, key=lambda way: losses[way].mean(), default=AS_IT_IS)
    return Learnt(candidates[kept], kept, {way: float(each.mean()) for way, each in losses.items()}, candidates)


def _is_better(losses: np.ndarray, start: np.ndarray, margin: float) -> bool:
    """Whether losses (n,) are lower than at the start by more than so many standard errors of their mean difference."""
    gains = start - losses
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > margin * error + BETTER)


@torch.no_grad()
def reference_losses(
    system: PersonalSystem, dataset: SpeechDataset, people: Sequence[Person], numbers: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Reference losses of each person's utterances of these numbers, (n,), under what is their own."""
    found = [np.zeros(len(indices)) for indices in numbers]
    places = [(place, order) for place, indices in enumerate(numbers) for order in range(len(indices))]
    items = [(at, Draw(int(numbers[place][order]), 0)) for at, (place, order) in enumerate(places)]
    for part in length_chunks(items, dataset):
        batch = batch_of(system, dataset, [draw for _, draw in part])
        losses = system.person_losses(batch, [people[places[at][0]] for at, _ in part])
        for (at, _), loss in zip(part, losses.tolist(), strict=True):
            place, order = places[at]
            found[place][order] = loss
    return found


def agreement(system: PersonalSystem, dataset: SpeechDataset, numbers: np.ndarray) -> float:
    """Reference loss of utterances by that under other sentences, as the recogniser is: 1 where the transcripts are anybody's.

    Args:
        dataset: of at least two sentences.
        numbers: of the utterances, (n,); the other sentences are theirs too, unless they all say the same.
    """
    rows = pd.DataFrame([dataset.rows[number] for number in numbers])
    sentences = list(dict.fromkeys(rows["reference"]))
    if len(sentences) == 1:
        sentences = list(dict.fromkeys(dataset.references))
    places = rows["reference"].map(sentences.index)
    losses = []
    for shift in range(min(N_SHIFTS + 1, len(sentences))):
        shifted = rows.assign(reference=[sentences[place - shift] for place in places])
        swapped = SpeechDataset(shifted, dataset.root, dataset.inputs)
        losses.append(reference_losses(system, swapped, [Person("nobody")], [np.arange(len(rows))])[0].mean())
    return float(losses[0] / np.mean(losses[1:]))


class _Training:
    def __init__(
        self, system: PersonalSystem, recordings: Recordings, enrolments: Sequence[Enrolment], options: PersonOptions, seed: int
    ) -> None:
        self.system, self.recordings, self.enrolments, self.options, self.seed = system, recordings, enrolments, options, seed
        self.layout = system.layout(options.targets, options.person_r)
        self.device = device_of(system)
        self.n_experts = system.gate_weights(
            batch_of(self.system, recordings.plain, [Draw(int(enrolments[0].parts.learn[0]), 0)])
        ).shape[1]

    def ways(self) -> list[str]:
        """What is tried, in order; weights only where experts are routed."""
        tried = {AUTO: [WEIGHTS, EXPERT, BOTH], BOTH: [WEIGHTS, BOTH]}.get(self.options.learn, [self.options.learn])
        return [way for way in tried if self.n_experts or way == EXPERT]

    def learn(self, way: str, before: list[Person], losses: list[np.ndarray]) -> tuple[list[Person], list[np.ndarray]]:
        """The people after a way of learning that begins with `before`, and their losses on the choosing parts: the best of all passes."""
        people = [self._begun(way, person, number) for number, person in enumerate(before)]
        best, best_losses = list(before), list(losses)
        rate = self.options.weights_learning_rate if way == WEIGHTS else self.options.person_learning_rate
        own = [_own(person, way) for person in people]
        optimizers = [torch.optim.AdamW([each], lr=rate, weight_decay=0.0) for each in own]
        with progress(f"people: {way}", self.options.person_passes, "passes") as bar:
            for number in range(self.options.person_passes):
                self._pass(number, people, own, optimizers)
                for place, loss in enumerate(self.choosing(people)):
                    if loss.mean() < best_losses[place].mean() - BETTER:
                        best_losses[place], best[place] = loss, _frozen(people[place])
                bar.update()
        return best, best_losses

    def choosing(self, people: Sequence[Person]) -> list[np.ndarray]:
        """Losses of each person's choosing part, (n_chosen,)."""
        return reference_losses(self.system, self.recordings.plain, people, [each.parts.choose for each in self.enrolments])

    def _begun(self, way: str, person: Person, number: int) -> Person:
        if way == WEIGHTS:
            return dataclasses.replace(person, weights=nn.Parameter(self._mean_weights(number)))
        vector = self.layout.new(self.seed, person.name).to(self.device)
        return dataclasses.replace(person, layout=self.layout, expert=nn.Parameter(vector))

    @torch.no_grad()
    def _mean_weights(self, number: int) -> Tensor:
        """The gate's mean weights over what a person is learnt from, (E,)."""
        items = [(number, Draw(int(index), 0)) for index in self.enrolments[number].parts.learn]
        parts = length_chunks(items, self.recordings.plain)
        rows = [
            self.system.gate_weights(batch_of(self.system, self.recordings.plain, [draw for _, draw in part])) for part in parts
        ]
        return torch.cat(rows).mean(0)

    def _pass(self, number: int, people: list[Person], own: list[Tensor], optimizers: list[torch.optim.AdamW]) -> None:
        """One pass over everybody's utterances: an update is a batch of each person who has one left."""
        batches = [self._batches(each, number) for each in self.enrolments]
        for step in range(max(map(len, batches))):
            active = [place for place in range(len(people)) if step < len(batches[place])]
            items = [(place, Draw(int(index), number)) for place in active for index in batches[place][step]]
            share = {place: 1 / len(batches[place][step]) for place in active}
            for part in length_chunks(items, self.recordings.augmented):
                batch = batch_of(self.system, self.recordings.augmented, [draw for _, draw in part])
                losses = self.system.person_losses(batch, [people[place] for place, _ in part])
                (losses * losses.new_tensor([share[place] for place, _ in part])).sum().backward()
            for place in active:
                nn.utils.clip_grad_norm_([own[place]], MOST_NORM)
                optimizers[place].step()
                optimizers[place].zero_grad()

    def _batches(self, enrolment: Enrolment, number: int) -> list[np.ndarray]:
        """A person's utterances in the batches of a pass; drawn from seed, name and pass alone."""
        order = np.random.default_rng(number_of(self.seed, enrolment.name, number)).permutation(enrolment.parts.learn)
        size = self.options.person_batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]


def _own(person: Person, way: str) -> Tensor:
    """What of a person learns."""
    own = person.weights if way == WEIGHTS else person.expert
    assert own is not None
    return own


def _frozen(person: Person) -> Person:
    expert, weights = (None if each is None else each.detach().clone() for each in (person.expert, person.weights))
    return dataclasses.replace(person, expert=expert, weights=weights)
