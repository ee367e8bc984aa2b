"""Every pair of option values either goes through the whole chain on a toy corpus, or is refused before work starts by a message that
names both options. A pair that fails midway is a defect.
"""

import itertools
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from moe.audio.augmentation import AugmentationOptions
from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ClusteringOptions
from moe.experts.expert_training import ExpertOptions, train_experts
from moe.experts.joint_training import JointOptions, train_jointly
from moe.experts.routed_lora import AdapterOptions
from moe.options import to_text
from moe.recognition.decoding import decode
from moe.routing.curriculum import CurriculumOptions
from moe.routing.embeddings import Embeddings, embed
from moe.routing.gate import Gate, GateConfig
from moe.routing.gate_training import GateOptions, train_gate
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.routing.weights import one_hot
from moe.system import DecodingOptions, System
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training
from steps import asr, cluster, experts, gate, main
from steps.inputs.training import plan_of
from steps.options.step_options import MixtureStepOptions
from tests.toys.chain import pending_options
from tests.toys.corpora import RATE, tone
from tests.toys.models import dataset, system_of, toy_base, write_corpus

FACTORS: dict[str, tuple[Any, ...]] = {
    "clustering_algorithm": ("balanced", "hdbscan", "spectral", "by_etiology"),
    "num_experts": (3, 1, "auto"),
    "cluster_unit": ("speaker", "utterance"),
    "noise": ("nearest", "own_expert", "uniform"),
    "hdbscan_algorithm": ("best", "generic"),
    "metric": ("euclidean", "cosine", "manhattan"),
    "reduce": ("pca", "none", "umap"),
    "reduce_dim": (50, 3),
    "no_reduce_experts": (False, True),
    "pooling": ("mean_std", "mean", "flatten", "none"),
    "gate_layer": ("0", "1", "last", "9"),
    "audio_context": ("bucketed", "full"),
    "context_silence_s": (1.0, 0.2),
    "gating_hidden": (0, 4),
    "skip_pretraining": (False, True),
    "top_k": (2, 1, 3),
    "mixing": ("delta", "loss"),
    "gate_scaling": ("renormalised", "certainty", "probability"),
    "expert_dropout": (0.0, 0.5),
    "shared_expert": (True, False),
    "shared_r": (None, 2),
    "soft_epochs": (0, 1),
    "temperature_start": (1.0, 2.0),
    "router_noise": (0.0, 0.1),
    "balance": ("kl", "switch", "none"),
    "balance_coefficient": (0.01, 0.5),
    "entropy_coefficient": (0.0, 0.1),
    "alignment_coefficient": (0.0, 0.1),
    "freeze_gate": (False, True),
    "gate_learning_rate": (1e-4, 1e-2),
    "augment": (False, True),
    "speed_factors": ("none", "0.9,1.1"),
}  # the first value is the default; num_experts has its own, which is one per style
NEEDED: dict[tuple[str, Any], dict[str, Any]] = {
    ("noise", "own_expert"): {"clustering_algorithm": "hdbscan"},
    ("noise", "uniform"): {"clustering_algorithm": "hdbscan"},
    ("hdbscan_algorithm", "generic"): {"clustering_algorithm": "hdbscan"},
    ("metric", "manhattan"): {"clustering_algorithm": "spectral"},
    ("num_experts", 1): {"top_k": 1, "min_experts": 1},  # min_experts is clustering's, which skip_pretraining leaves out
    ("temperature_start", 2.0): {"soft_epochs": 1},
    ("soft_epochs", 1): {"temperature_start": 2.0},  # softness may be in the temperature alone, where top_k is all experts
    ("speed_factors", "0.9,1.1"): {"augment": True},
}  # what a value is for; a pair of which this is the other half is refused
ALWAYS_REFUSED = {"pooling": "none", "gate_layer": "9"}  # whatever else is set
Pair = tuple[tuple[str, Any], tuple[str, Any]]
CONTEXT = {"context_floor_s": 1.0, "context_bucket_s": 0.25}
TOY = {"lora_r": 2, "expert_epochs": 1, "asr_epochs": 2, "gating_epochs": 3, "num_experts": 3}
N_SPEAKERS, N_EACH = 9, 2
pytestmark = pytest.mark.slow


def combined(*settings: tuple[str, Any]) -> dict[str, Any]:
    """The settings with what they need, where they do not say otherwise."""
    found: dict[str, Any] = {}
    for setting in settings:
        found |= NEEDED.get(setting, {})
    if ("skip_pretraining", True) in settings:
        found.pop("min_experts", None)
    return found | dict(settings)


def refusal(settings: dict[str, Any]) -> str:
    """What `main` says before any work; empty where it has nothing against it."""
    try:
        return _refusal(chain_options(settings))
    except ValueError as error:
        return str(error)


@cache  # a value that is the default makes the same options as leaving it out, so two of three pairs have been asked before
def _refusal(options: main.StepOptions) -> str:
    try:
        main.check_stages(options)
    except ValueError as error:
        return str(error)
    return ""


def chain_options(settings: dict[str, Any]) -> main.StepOptions:
    idle = {"expert_epochs": 6, "gating_epochs": 60} if settings.get("skip_pretraining") else {}  # as by default: no such stage
    return main.StepOptions(**TOY | idle | settings)


@cache
def verdicts() -> tuple[list[Pair], dict[Pair, str]]:
    """Pairs of values that are allowed, and those that are not with what is said."""
    allowed, refused = [], {}
    for first, second in itertools.combinations(FACTORS, 2):
        for pair in itertools.product(
            [(first, value) for value in FACTORS[first]], [(second, value) for value in FACTORS[second]]
        ):
            said = refusal(combined(*pair))
            if said:
                refused[pair] = said
            else:
                allowed.append(pair)
    return allowed, refused


@cache
def grid() -> list[dict[str, Any]]:
    """Combinations in which every allowed pair occurs: each begun with a pair not seen yet, filled with the values that bring most."""
    allowed, refused = verdicts()
    waiting, found = dict.fromkeys(allowed), []
    while waiting:
        settings = dict(next(iter(waiting)))
        for name in sorted(FACTORS, key=lambda name: (name in settings, -len(FACTORS[name]))):
            if name not in settings:
                by_gain = sorted(_fitting(settings, name, refused), key=lambda value: -_n_new(settings, (name, value), waiting))
                settings[name] = next(value for value in by_gain if not refusal(combined(*settings.items(), (name, value))))
        for pair in itertools.combinations(settings.items(), 2):
            waiting.pop(_ordered(pair), None)
        found.append(combined(*settings.items()))
    return found


def _fitting(settings: dict[str, Any], name: str, refused: dict[Pair, str]) -> list[Any]:
    return [value for value in FACTORS[name] if not any(_ordered((each, (name, value))) in refused for each in settings.items())]


def _n_new(settings: dict[str, Any], setting: tuple[str, Any], waiting: dict[Pair, None]) -> int:
    return sum(_ordered((each, setting)) in waiting for each in settings.items())


def _ordered(pair: Pair) -> Pair:
    names = list(FACTORS)
    return tuple(sorted(pair, key=lambda setting: names.index(setting[0])))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Nine speakers of three etiologies, each with a chord of its own, two short utterances each; one dev utterance of each etiology."""
    root = tmp_path_factory.mktemp("corpus")
    n = N_SPEAKERS * N_EACH
    table = write_corpus(root, tuple(0.4 + 0.05 * (number % 5) for number in range(n + 3)))
    table["speaker"] = [f"s{number // N_EACH}" for number in range(n)] + ["d0", "d1", "d2"]
    table["etiology"] = [f"e{number // N_EACH % 3}" for number in range(n)] + ["e0", "e1", "e2"]
    for number, row in table.iterrows():
        noise = np.random.default_rng(number).normal(0, 0.02, round(row.duration_s * RATE))
        wave = tone(150 * (1 + 5 * int(row.etiology[1:])), row.duration_s)[: len(noise)] + noise[: round(row.duration_s * RATE)]
        soundfile.write(root / row.audio, wave.astype(np.float32), RATE, subtype="FLOAT")
    return table[:n].reset_index(drop=True), table[n:].reset_index(drop=True), root


Outcome = tuple[list[dict[str, Any]], list[tuple[str, str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def outcome(corpus: tuple[pd.DataFrame, pd.DataFrame, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The combinations of the grid that went through the whole chain, and those that failed midway, with what was said."""
    toy, whole, failed = Toy(corpus), [], []
    for settings in grid():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                toy.run(settings, tmp_path_factory.mktemp("chain"))
            whole.append(settings)
        except Exception as error:  # noqa: BLE001 - all that fail midway are told together
            if settings["no_reduce_experts"] and "no_reduce_experts=true" in str(error):
                continue  # to fail on too few clusters is what it is for
            failed.append(
                (type(error).__name__, str(error), {k: v for k, v in settings.items() if k not in FACTORS or v != FACTORS[k][0]})
            )
    return whole, failed


class Toy:
    """The chain by the functions that the steps call, without a store."""

    def __init__(self, corpus: tuple[pd.DataFrame, pd.DataFrame, Path]) -> None:
        self.train, self.dev, self.root = corpus
        self.embedded: dict[tuple[Any, ...], Embeddings] = {}

    def run(self, settings: dict[str, Any], folder: Path) -> None:
        """All stages from embed to decoding."""
        options = chain_options(settings)
        main.check_stages(options)
        joint = pending_options(asr, options)
        base = toy_base()
        vectors = self.embeddings(base, joint, folder)
        train, dev = vectors.select(self.train["utterance_id"]), vectors.select(self.dev["utterance_id"])
        if options.skip_pretraining:
            trained_gate, extras = Gate(GateConfig(train.shape[1], options.num_experts), options.seed), {}
            trained_gate.set_statistics(torch.from_numpy(train))
            model = WhisperMoE(base.model, options.num_experts, joint.part(AdapterOptions), joint.part(RoutingOptions))
        else:
            clusters, dev_labels, dev_soft = self.cluster(options, train, dev)
            trained_gate = self.gate(options, (train, clusters.soft_labels_), (dev, dev_soft))
            model, extras = (
                self.experts(options, base, clusters, dev_labels),
                {"cluster_weights": clusters.soft_labels_.astype(np.float32)},
            )
        model.gate, model.balance = trained_gate.train(), joint.part(BalanceOptions)
        rates = {"adapters": joint.asr_learning_rate, "gate": joint.gate_learning_rate}
        self.join(joint, system_of(model, base, joint.part(AudioContextOptions), **rates), {"embedding": train} | extras, dev)

    def embeddings(self, base: BaseModel, options: asr.StepOptions, folder: Path) -> Embeddings:
        routing, context = options.part(RoutingOptions), options.part(AudioContextOptions)
        key = (routing.layer, routing.pooling, context)
        if key not in self.embedded:
            rows = pd.concat([self.train, self.dev], ignore_index=True)
            place = folder / str(len(self.embedded))
            place.mkdir()
            data = dataset(rows, self.root, context)
            self.embedded[key] = embed(embedder(base.model, routing.layer, routing.pooling), data, place, 8)
        return self.embedded[key]

    def cluster(self, options: Any, train: np.ndarray, dev: np.ndarray) -> tuple[UtteranceClusters, np.ndarray, np.ndarray]:
        chosen = pending_options(cluster, options).part(ClusteringOptions)
        clusters = UtteranceClusters(chosen).fit(train, self.train["utterance_id"], self.train["speaker"], self.train["etiology"])
        return clusters, *clusters.assign(dev, self.dev["speaker"])

    def gate(self, options: Any, train: tuple[np.ndarray, np.ndarray], dev: tuple[np.ndarray, np.ndarray]) -> Gate:
        chosen = pending_options(gate, options).part(GateOptions)
        chosen = type(chosen)(**vars(chosen) | {"top_k": min(chosen.top_k, train[1].shape[1])})
        return train_gate(*train, *dev, chosen).gate

    def experts(self, options: Any, base: BaseModel, clusters: UtteranceClusters, dev_labels: np.ndarray) -> WhisperMoE:
        chosen = pending_options(experts, options)
        weights = one_hot(torch.from_numpy(clusters.labels_), clusters.n_clusters_).weights.numpy()
        model = WhisperMoE(base.model, clusters.n_clusters_, chosen.part(AdapterOptions), chosen.part(RoutingOptions))
        system = system_of(model, base, chosen.part(AudioContextOptions))
        plan = plan_of(chosen, chosen.expert_epochs, chosen.expert_batch_size, chosen.expert_learning_rate)
        train_set, dev_set = (
            self.train_set(chosen, system, {"routing_weights": weights}),
            SpeechDataset(self.dev, self.root, system.inputs),
        )
        train_experts(system, train_set, dev_set, dev_labels, chosen.part(ExpertOptions), Training(plan, _silent))
        return model

    def train_set(self, options: MixtureStepOptions, system: System, extras: dict[str, np.ndarray]) -> SpeechDataset:
        augmentation = options.part(AugmentationOptions) if options.augment else None
        return SpeechDataset(self.train, self.root, system.inputs, augmentation, extras=extras)

    def join(self, options: asr.StepOptions, system: System, extras: dict, dev: np.ndarray) -> None:
        dev_set = SpeechDataset(self.dev, self.root, system.inputs, extras={"embedding": dev})
        plan = plan_of(options, options.asr_epochs, options.asr_batch_size, options.asr_learning_rate)
        train_jointly(
            system, self.train_set(options, system, extras), dev_set, options.part(JointOptions), options.part(CurriculumOptions),
            Training(plan, _silent),
        )  # fmt: skip
        hypotheses = decode(system, dev_set, DecodingOptions())
        weights = np.stack([hypothesis.routing_weights for hypothesis in hypotheses])
        assert len(hypotheses) == len(self.dev) and np.isfinite(weights).all()
        assert ((weights > 0).sum(axis=1) <= options.top_k).all()
        assert all(torch.isfinite(parameter).all() for parameter in system.module.trainable_parameters().values())


def _silent(number: int, values: dict[str, float]) -> None:
    assert all(np.isfinite(value) for value in values.values()), values


def test_what_is_refused_is_refused_by_a_message_that_names_both_options() -> None:
    """Or, for a value that no option can save, by the message of that value."""
    _, refused = verdicts()
    for pair, said in refused.items():
        bad = [setting for setting in pair if setting in ALWAYS_REFUSED.items()]
        names = [f"{name}={to_text(value)}" for name, value in bad] if bad else [name for name, _ in pair]
        needed = {name for setting in pair for name in NEEDED.get(setting, {})}  # what one of the two stands for
        assert all(name in said or needed & set(said.replace("=", " ").split()) for name in names), (pair, said)


def test_every_allowed_pair_of_values_is_in_the_grid() -> None:
    pairs = {
        _ordered(pair)
        for settings in grid()
        for pair in itertools.combinations(settings.items(), 2)
        if {*dict(pair)} <= {*FACTORS}
    }
    assert set(verdicts()[0]) <= pairs


def test_every_combination_of_the_grid_goes_through_the_chain(outcome: Outcome) -> None:
    whole, failed = outcome
    assert not failed, "\n".join(map(str, failed))
    assert len(whole) > 0.8 * len(grid())


def test_sixty_combinations_run_or_are_refused(outcome: Outcome) -> None:
    """Different ones: each has run whole, or `main` refuses it though either value alone is allowed."""
    ran = {frozenset(settings.items()) for settings in outcome[0]}
    alone = {(name, value) for name, values in FACTORS.items() for value in values if not refusal(combined((name, value)))}
    refused = {frozenset(combined(*pair).items()) for pair in verdicts()[1] if set(pair) <= alone}
    assert len(ran) + len(refused) >= 60 and not ran & refused
