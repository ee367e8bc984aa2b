"""Training a domain-token Whisper: every utterance with its own token, dev judged by domain, then the classifier."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from moe.recognition.dev_scores import BestOnDev
from moe.system import Hypothesis
from moe.systems.domain_whisper.asks import CORPUS, DomainAsk
from moe.systems.domain_whisper.classifier import TrainedClassifier, train_classifier
from moe.systems.domain_whisper.domains import NO_DOMAIN
from moe.systems.domain_whisper.inputs import DOMAIN
from moe.systems.domain_whisper.options import DOMAIN_CER, BalanceOptions, DomainTrainingOptions
from moe.systems.domain_whisper.system import DomainSystem
from moe.text.error_rates import character_error_rate, word_error_rate
from moe.training.best_epoch import Trained
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, fit


@dataclasses.dataclass(frozen=True)
class TrainedDomains(Trained):
    """What training did, and the classifier; None where no token was trained."""

    classifier: TrainedClassifier | None


def train(
    system: DomainSystem,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    plain_set: SpeechDataset,
    options: DomainTrainingOptions,
    training: Training,
) -> TrainedDomains:
    """Train a system in place; it keeps the weights of its best epoch, and gets a classifier where it has tokens to give.

    Args:
        train_set, dev_set: serve the numbers of the domains.
        plain_set: each training utterance once, as it is, for the classifier.
    """
    hooks = DomainHooks(system, dev_set, training, options.selection, options.domain_patience)
    system.module.use_precision(training.plan.precision)
    summary = fit(system.module, train_set, training, hooks, system.parameter_groups())
    hooks.restore_best()
    if not system.shape.conditioned:
        return TrainedDomains(**vars(hooks.trained(summary)), classifier=None)
    domains = system.shape.domains
    given = [(each, domains.numbers(each.rows.column("etiology"))) for each in (plain_set, dev_set)]
    seed, checkpoints = training.plan.seed, training.checkpoints.below("classifier")
    judged = train_classifier(system.module, given[0], given[1], seed, training.report_under("classifier"), checkpoints)
    system.classifier = judged.result.gate
    return TrainedDomains(**vars(hooks.trained(summary)), classifier=judged)


class DomainHooks(BestOnDev):
    """Decodes dev with the manifest's tokens; error rates by domain beside those of all."""

    def __init__(self, system: DomainSystem, dev_set: SpeechDataset, training: Training, selected: str, patience: int) -> None:
        super().__init__(system, dev_set, training, patience, selected, DomainAsk(domain=CORPUS))
        self.names = system.shape.domains.names

    def scores(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        found = super().scores(hypotheses)
        losses = np.array([each.utterance_loss for each in hypotheses])
        for name, rows in self._rows().items():
            part = [hypotheses[row].text for row in rows]
            references = [self.dev_set.references[row] for row in rows]
            found[f"wer/{name}"] = word_error_rate(references, part)
            found[f"cer/{name}"] = character_error_rate(references, part)
            found[f"loss/{name}"] = float(losses[rows].mean())
        return found

    def rate(self, name: str, hypotheses: Sequence[Hypothesis]) -> float:
        if name != DOMAIN_CER:
            return super().rate(name, hypotheses)
        texts, references = [each.text for each in hypotheses], self.dev_set.references
        rates = [
            character_error_rate([references[row] for row in rows], [texts[row] for row in rows])
            for rows in self._rows().values()
        ]
        return float(np.mean(rates))

    def _rows(self) -> dict[str, list[int]]:
        """The dev utterances of each domain that has any, by name."""
        numbers = self.dev_set.extras[DOMAIN].tolist()
        rows = {name: [row for row, each in enumerate(numbers) if each == number] for number, name in enumerate(self.names)}
        return {name: found for name, found in rows.items() if found}


def balanced(numbers: np.ndarray, is_target: Sequence[bool], options: BalanceOptions, seed: int) -> np.ndarray:
    """Rows of an epoch: each utterance at least once, those of target or smaller domains again in a seeded order.

    Args:
        numbers: (N,) of the domains; utterances without one come once.
    """
    random = np.random.default_rng([seed, 1])
    sizes = {number: int((numbers == number).sum()) for number in range(len(is_target))}
    largest = max(sizes.values(), default=0)
    rows = [np.arange(len(numbers))]
    for number, size in sizes.items():
        wanted = largest if options.balance_domains else round(size * (options.oversample if is_target[number] else 1.0))
        own = np.flatnonzero(numbers == number)
        while size and wanted > size:
            again = random.permutation(own)[: wanted - size]
            rows.append(np.sort(again))
            wanted -= len(again)
    return np.concatenate(rows)


def token_share(numbers: np.ndarray, token_dropout: float) -> float:
    """The share of training utterances, whose domains have these numbers (N,), that has a token in an epoch, on average."""
    return float((numbers != NO_DOMAIN).mean() * (1 - token_dropout))


def row_similarities(system: DomainSystem) -> list[tuple[str, str, float]]:
    """The cosine of every two rows, behind the names of their domains."""
    rows, names = system.module.rows.detach().float(), system.shape.domains.names
    return [
        (names[a], names[b], float(torch.cosine_similarity(rows[a], rows[b], dim=0)))
        for a in range(len(names))
        for b in range(a + 1, len(names))
    ]
