"""Experts: all of them train in one pass, each is judged on its own cluster by WER, and each keeps its best."""

import itertools

import numpy as np
import pytest
import torch

from moe.experts.adapter_folders import SHARED, adapter_names, expert_name, experts_from_shared
from moe.experts.best_adapters import adapter_state
from moe.experts.expert_training import ExpertHooks, ExpertOptions, TrainedExperts, dev_wer, train_experts
from moe.experts.routed_lora import AdapterOptions, routed_layers
from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.whisper_moe.asks import FixedRouting
from moe.systems.whisper_moe.model import WhisperMoE
from moe.text.error_rates import word_error_rate
from moe.training import loop
from tests.toys.models import system_of
from tests.toys.training import N_EXPERTS, Notes, dataset, one_hot_rows, plan, toy_base, toy_mixture, training, write_corpus

N = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, N), root


def mixture_and_data(corpus, awake: bool = True):
    """A mixture, its train set with one-hot weights, and a dev set of the same utterances with their clusters."""
    manifest, root = corpus
    base = toy_base()
    model = toy_mixture(base, awake=awake)
    train_set = dataset(manifest, root, extras={"routing_weights": one_hot_rows(N)})
    return model, train_set, dataset(manifest, root), np.arange(N) % N_EXPERTS


def train(
    mixture_and_data, options: ExpertOptions = ExpertOptions(), report=None, eval_every: int = 1, **changes
) -> TrainedExperts:
    model, train_set, dev_set, clusters = mixture_and_data
    return train_experts(
        system_of(model), train_set, dev_set, clusters, options, training(plan(**changes), report, eval_every=eval_every)
    )


def matrices(model: WhisperMoE) -> dict[tuple[str, str], torch.Tensor]:
    """(layer, A or B) → the stacked experts' matrices, copied."""
    pairs = [(name, layer) for name, layer in routed_layers(model.base)]
    return {(name, kind): getattr(layer, f"lora_{kind}").detach().clone() for name, layer in pairs for kind in "AB"}


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list:
    """The trainers that the test makes."""
    made = []

    class Recorded(loop.SpeechTrainer):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(loop, "SpeechTrainer", Recorded)
    return made


def test_one_update_on_a_mixed_batch_changes_every_expert(corpus, trainers) -> None:
    """Pitfall 1: activating one adapter froze the others, and the optimizer held the first one only."""
    toys = mixture_and_data(corpus)
    model, before = toys[0], matrices(toys[0])
    train(toys, batch_size=N, epochs=1)
    assert trainers[0].state.global_step == 1
    for key, old in before.items():
        for expert in range(N_EXPERTS):
            assert not torch.equal(old[expert], matrices(model)[key][expert]), (key, expert)
    held = {id(parameter) for group in trainers[0].optimizer.param_groups for parameter in group["params"]}
    stacked = [getattr(layer, f"lora_{kind}") for _, layer in routed_layers(model.base) for kind in "AB"]
    assert len(stacked) > 8 and all(id(parameter) in held for parameter in stacked)


def test_the_start_is_scored_once_as_the_epochs_are_and_is_the_base_where_experts_are_fresh(corpus) -> None:
    reported: list[tuple[int, dict[str, float]]] = []
    model, train_set, dev_set, clusters = toys = mixture_and_data(corpus, awake=False)
    system = system_of(model)
    alone = dev_wer(system, dev_set, clusters, ExpertOptions(), training(plan(epochs=1)))
    found = train(toys, epochs=2, report=lambda number, values: reported.append((number, values)))
    assert found.start["wer"] == alone and set(found.start) == set(found.history[0]) - {"epoch"}
    assert [values for _, values in reported if "dev/wer_start" in values] == [{"dev/wer_start": alone}]


def test_fresh_experts_all_learn_although_their_b_is_zero(corpus) -> None:
    """Pitfall 1, from the start: B moves in the first update, A from the second on."""
    toys = mixture_and_data(corpus, awake=False)
    before = matrices(toys[0])
    train(toys, batch_size=N, epochs=2, eval_every=9)  # the last epoch alone is scored, so it is kept
    after = matrices(toys[0])
    assert all(not torch.equal(old[expert], after[key][expert]) for key, old in before.items() for expert in range(N_EXPERTS))


def test_an_expert_nobody_is_sent_to_stays_as_it_is(corpus) -> None:
    """Weight decay or momentum must not move what has no utterance; the others move."""
    manifest, root = corpus
    model, _, dev_set, clusters = mixture_and_data(corpus)
    rows = one_hot_rows(N)
    rows[rows[:, 2] == 1] = (1, 0, 0)
    train_set = dataset(manifest, root, extras={"routing_weights": rows})
    before = {name: adapter_state(model, name) for name in (expert_name(e) for e in range(N_EXPERTS))}
    train((model, train_set, dev_set, clusters), epochs=1)
    moved = {
        name: any(not torch.equal(value, adapter_state(model, name)[key]) for key, value in old.items())
        for name, old in before.items()
    }
    assert moved == {"expert_0": True, "expert_1": True, "expert_2": False}


def test_in_the_shared_epochs_the_shared_adapter_trains_alone(corpus) -> None:
    options = ExpertOptions(shared_epochs=1, expert_epochs=2)
    moved = {}
    for epochs in (1, 2):
        toys = mixture_and_data(corpus, awake=False)
        model, before = toys[0], matrices(toys[0])
        shared = adapter_state(model, SHARED)
        train(toys, options, epochs=epochs, eval_every=9)
        moved[epochs] = any(not torch.equal(old, matrices(model)[key]) for key, old in before.items())
        assert any(not torch.equal(value, adapter_state(model, SHARED)[key]) for key, value in shared.items())
    assert moved == {1: False, 2: True}


def test_experts_copied_from_the_shared_adapter_change_nothing_of_what_is_computed(corpus) -> None:
    model, train_set, *_ = mixture_and_data(corpus)
    with torch.no_grad():
        for _, layer in routed_layers(model.base):
            layer.lora_B.zero_()
    before = decode(system_of(model), train_set, DecodingOptions(), with_loss=True)
    experts_from_shared(model.base)
    after = decode(system_of(model), train_set, DecodingOptions(), with_loss=True)
    assert [each.utterance_loss for each in after] == pytest.approx([each.utterance_loss for each in before], abs=1e-5)
    shared = adapter_state(model, SHARED)
    assert all(same(shared, adapter_state(model, expert_name(expert))) for expert in range(N_EXPERTS))
    assert any(value.abs().any() for value in shared.values())


def test_the_copy_is_made_once_where_the_shared_epochs_end(corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    toys, copied = mixture_and_data(corpus, awake=False), []
    monkeypatch.setattr("moe.experts.expert_training.experts_from_shared", lambda base: copied.append(experts_from_shared(base)))
    train(toys, ExpertOptions(shared_epochs=2, expert_epochs=4, experts_init="shared"), epochs=4, eval_every=9)
    assert len(copied) == 1
    states = [adapter_state(toys[0], expert_name(expert)) for expert in range(N_EXPERTS)]
    assert not same(states[0], states[1])  # since then each has learnt its own


def test_experts_cannot_start_from_a_shared_adapter_of_another_rank_or_from_none() -> None:
    for adapters in (AdapterOptions(lora_r=2, shared_r=3), AdapterOptions(lora_r=2, shared_expert=False)):
        with pytest.raises(ValueError, match="experts of rank 2 cannot start from a shared adapter of rank"):
            experts_from_shared(toy_mixture(toy_base(), adapters=adapters).base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_epochs": 6}, "shared_epochs=6: leaves none of expert_epochs=6"),
        ({"experts_init": "shared"}, "shared_epochs=0 leaves the shared adapter zero"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertOptions(**options)


def test_each_expert_is_scored_on_its_own_cluster(corpus) -> None:
    model, _, dev_set, clusters = toys = mixture_and_data(corpus)
    found = train(toys, epochs=1).history[0]  # of the weights that are kept: there is one epoch
    for expert in range(N_EXPERTS):
        alone = decode(system_of(model), dev_set, DecodingOptions(), FixedRouting(weights=tuple(np.eye(N_EXPERTS)[expert])), True)
        own = [number for number in range(N) if clusters[number] == expert]
        wer = word_error_rate([dev_set.rows[k]["reference"] for k in own], [alone[k].text for k in own])
        assert found[f"wer/expert_{expert}"] == pytest.approx(wer)
        assert found[f"loss/expert_{expert}"] == pytest.approx(np.mean([alone[k].utterance_loss for k in own]), rel=1e-4)


class Planned(ExpertHooks):
    """A stage whose scores of epochs are given, and which keeps every adapter's state after every epoch."""

    plan: list[dict[str, float]] = []
    last: "Planned"

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.scores, self.states = iter(self.plan), []
        self.start = {"wer": 1.0}  # known, so that no plan begins with it
        Planned.last = self

    def score(self) -> dict[str, float]:
        names = adapter_names(routed_layers(self.model.base)[0][1])
        self.states.append({name: adapter_state(self.model, name) for name in names})
        return dict(next(self.scores))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moe.experts.expert_training.ExpertHooks", Planned)

    def make(*rows: tuple[float, ...]) -> None:
        """Per epoch: the whole WER, then each expert's; losses say the opposite."""
        names = ("wer", *(f"wer/expert_{e}" for e in range(N_EXPERTS)))
        loss = [name.replace("wer", "loss") for name in names]
        Planned.plan = [dict(zip(names, row, strict=True)) | {n: 1 - w for n, w in zip(loss, row, strict=True)} for row in rows]

    return make


def same(left: dict, right: dict) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_best_of_each_expert_is_restored_never_the_last(corpus, planned) -> None:
    """Pitfall 12: experts were saved last, not best; the metric is WER, and the losses here contradict it."""
    planned((0.5, 0.1, 0.9, 0.9), (0.4, 0.5, 0.2, 0.9), (0.6, 0.6, 0.6, 0.6), (0.9, 0.9, 0.9, 0.9), (0.3, 0.3, 0.3, 0.3))
    toys = mixture_and_data(corpus)
    trained = train(toys, epochs=4)
    model, states = toys[0], Planned.last.states
    assert trained.kept == "best of each expert" and trained.wer == 0.3
    for name, best in (("expert_0", 0), ("expert_1", 1), ("expert_2", 2), (SHARED, 1)):  # the shared one: of the best whole epoch
        assert same(states[best][name], adapter_state(model, name)), name
        assert not any(same(states[best][name], state[name]) for k, state in enumerate(states[:4]) if k != best)


def test_the_best_epoch_is_kept_where_the_assembled_experts_are_worse(corpus, planned) -> None:
    """Pitfall 12."""
    planned((0.5, 0.1, 0.9, 0.9), (0.4, 0.5, 0.2, 0.9), (0.6, 0.6, 0.6, 0.6), (0.41, 0.3, 0.3, 0.3))
    toys = mixture_and_data(corpus)
    trained = train(toys, epochs=3)
    assert (trained.kept, trained.wer) == ("epoch 2", 0.4)
    assert all(same(state, adapter_state(toys[0], name)) for name, state in Planned.last.states[1].items())


def test_training_ends_when_every_expert_has_stopped(corpus, planned) -> None:
    planned(*itertools.repeat((0.5, 0.5, 0.5, 0.5), 9))
    assert len(train(mixture_and_data(corpus), ExpertOptions(expert_patience=2), epochs=8).history) == 3
    planned((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.4), *itertools.repeat((0.5, 0.5, 0.5, 0.5), 9))
    assert len(train(mixture_and_data(corpus), ExpertOptions(expert_patience=2), epochs=8).history) == 5


def test_validation_every_second_epoch_and_after_the_last(corpus, planned) -> None:
    """Pitfall 12: epochs without evaluation overwrote the best."""
    planned((0.2,) * 4, (0.3,) * 4, (0.25,) * 4, (0.2,) * 4)
    toys, report = mixture_and_data(corpus), Notes()
    train(toys, eval_every=2, epochs=5, report=report)
    assert report.of("dev/wer") == [(1, 0.2), (3, 0.3), (4, 0.25)]
    assert all(same(state, adapter_state(toys[0], name)) for name, state in Planned.last.states[0].items())


def test_experts_have_a_rate_and_a_decay_of_their_own(corpus, trainers) -> None:
    toys = mixture_and_data(corpus)
    train(toys, ExpertOptions(expert_rate_share=0.1, expert_decay=0.05), epochs=1)
    shared, experts = trainers[0].optimizer.param_groups
    assert (experts["initial_lr"], experts["weight_decay"]) == (pytest.approx(1e-3), 0.05)
    assert (shared["initial_lr"], shared["weight_decay"]) == (pytest.approx(1e-2), 0.0)
    own = {id(getattr(layer, name)) for _, layer in routed_layers(toys[0].base) for name in ("lora_A", "lora_B")}
    assert {id(each) for each in experts["params"]} == own and not own & {id(each) for each in shared["params"]}


def test_an_expert_that_is_no_better_than_the_shared_adapter_ends_at_zero(corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"wer": 0.5, "wer/expert_0": 0.2, "wer/expert_1": 0.4, "wer/expert_2": 0.9}
    routed = {"wer": 0.4, "wer/expert_0": 0.3, "wer/expert_1": 0.4, "wer/expert_2": 0.3}

    def score(hooks: ExpertHooks) -> dict[str, float]:
        values = routed if hooks.dev_set.extras["routing_weights"].any() else alone
        return values | {"loss": 0.0}

    monkeypatch.setattr(ExpertHooks, "score", score)
    toys = mixture_and_data(corpus)
    done = train(toys, ExpertOptions(drop_experts=True), epochs=1)
    assert done.kept.endswith("with 2 of 3 experts at zero"), "worse or as good is dropped"
    for _, layer in routed_layers(toys[0].base):
        assert not layer.lora_B[[0, 1]].any() and layer.lora_B[2].any()
    assert toys[2].extras["routing_weights"].any(), "dev is routed as before"


def test_the_same_seed_trains_the_same_experts(corpus) -> None:
    """Design 11."""
    runs = []
    for _ in range(2):
        toys, report = mixture_and_data(corpus), Notes()
        trained = train(toys, epochs=2, report=report)
        runs.append(({name: adapter_state(toys[0], name) for name in ("expert_0", SHARED)}, trained.history, report.reported))
    assert runs[0][1:] == runs[1][1:] and all(same(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_every_epoch_tells_wer_and_loss_of_every_expert(corpus) -> None:
    report = Notes()
    trained = train(mixture_and_data(corpus), epochs=2, report=report)
    for expert in range(N_EXPERTS):
        for name in ("wer", "loss"):
            assert [epoch for epoch, _ in report.of(f"dev/{name}/expert_{expert}")] == [0, 1]
    assert [row["epoch"] for row in trained.history] == [0, 1] and report.of("train/loss")
