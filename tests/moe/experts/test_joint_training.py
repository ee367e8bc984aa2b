"""Joint training: the curriculum advances, the gate has a rate of its own, collapse shows, and the best epoch is kept."""

import numpy as np
import pytest
import torch

from moe.experts.joint_training import JointHooks, JointOptions, TrainedMixture, experts_faults, train_jointly
from moe.experts.mixture import Mixture
from moe.experts.routed_lora import AdapterOptions, routed_layers
from moe.routing.curriculum import CurriculumOptions
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper_moe.model import WhisperMoE
from tests.toys.models import system_of
from tests.toys.training import (
    N_EXPERTS,
    Notes,
    changed,
    dataset,
    one_hot_rows,
    plan,
    toy_base,
    toy_mixture,
    training,
    weights,
    write_corpus,
)

N = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, N), root


def mixture_and_data(corpus, with_clusters: bool = False, **options):
    manifest, root = corpus
    base = toy_base()
    model = toy_mixture(base, **options)
    extras = {"cluster_weights": one_hot_rows(N)} if with_clusters else {}
    return model, dataset(manifest, root, extras=extras), dataset(manifest, root)


def train(
    mixture_and_data,
    options: JointOptions = JointOptions(asr_learning_rate=1e-2, gate_learning_rate=1e-2),
    curriculum: CurriculumOptions = CurriculumOptions(),
    report=None,
    eval_every: int = 1,
    **changes,
) -> TrainedMixture:
    model, train_set, dev_set = mixture_and_data
    system = system_of(model, adapters=options.asr_learning_rate, gate=options.gate_learning_rate)
    return train_jointly(
        system, train_set, dev_set, options, curriculum, training(plan(**changes), report, eval_every=eval_every)
    )


def gate_names(model: WhisperMoE) -> set[str]:
    return {name for name, _ in model.gate.named_parameters(prefix="gate")}


def test_one_update_on_a_mixed_batch_changes_every_chosen_expert_and_the_gate(corpus) -> None:
    """Pitfall 1: joint training trained no expert. Here every utterance goes to all, so all are chosen."""
    model, *data = mixture_and_data(corpus, routing=RoutingOptions(top_k=N_EXPERTS))
    before = weights(model)
    train((model, *data), batch_size=N, epochs=1)
    after = dict(model.named_parameters())
    for name in (name for name in before if name.endswith(("lora_A", "lora_B"))):
        assert all(not torch.equal(before[name][expert], after[name][expert]) for expert in range(N_EXPERTS)), name
    assert gate_names(model) <= changed(before, model)
    assert not any("base_layer" in name for name in changed(before, model))


def test_the_optimizer_holds_every_expert_the_shared_adapter_and_the_gate(corpus) -> None:
    """Pitfall 1: the optimizer was built with one expert's parameters only."""
    model, *_ = mixture_and_data(corpus)
    groups = system_of(model, adapters=0.5, gate=0.25).parameter_groups()
    rate = {id(parameter): group.learning_rate for group in groups for parameter in group.parameters}
    for _, layer in routed_layers(model.base):
        for name in ("lora_A", "lora_B", "shared_A", "shared_B"):
            assert rate[id(getattr(layer, name))] == 0.5
    assert {rate[id(parameter)] for parameter in model.gate.parameters()} == {0.25}
    assert len(rate) == 4 * len(routed_layers(model.base)) + len(list(model.gate.parameters()))


def test_the_gates_rate_is_its_own_in_the_trainer_too(corpus) -> None:
    """Document 002's pitfall: rates per group were defined and never passed on. A rate of nearly 0 leaves the gate where it was."""
    model, *data = mixture_and_data(corpus)
    before = weights(model)
    train((model, *data), JointOptions(asr_learning_rate=1e-2, gate_learning_rate=1e-12), epochs=1)
    for name, parameter in model.named_parameters():
        if name in gate_names(model):
            torch.testing.assert_close(parameter, before[name], atol=1e-9, rtol=0)
    assert any(name.endswith("lora_B") for name in changed(before, model))


def test_a_frozen_gate_stays_as_it_was_to_the_bit(corpus) -> None:
    model, *data = mixture_and_data(corpus, balance=BalanceOptions(balance_coefficient=1.0))
    before = weights(model)
    train((model, *data), JointOptions(asr_learning_rate=1e-2, freeze_gate=True))
    assert not gate_names(model) & changed(before, model) and changed(before, model)


def test_the_curriculum_advances_with_the_epochs(corpus) -> None:
    """Pitfall 3: the epoch was not passed, so every expert ran on every batch for ever."""
    model, *data = mixture_and_data(corpus)
    report, used = Notes(), []
    forward = model.forward

    def listening(**batch):
        used.append((model.phase.name, model.phase.top_k, model.phase.temperature))
        return forward(**batch)

    model.forward = listening
    curriculum = CurriculumOptions(soft_epochs=2, temperature_start=3.0)
    train((model, *data), curriculum=curriculum, report=report, epochs=4, batch_size=N)
    assert used == [("soft", 3, 3.0), ("soft", 3, 2.0), ("top_k", 2, 1.0), ("top_k", 2, 1.0)]
    assert report.of("curriculum/top_k") == [(0, 3), (1, 3), (2, 2), (3, 2)]
    assert report.of("curriculum/temperature") == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 1.0)]


def test_dev_is_scored_as_it_will_decode_whatever_the_phase(corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    report, seen, measure = Notes(), [], JointHooks._loads
    monkeypatch.setattr(JointHooks, "_loads", lambda hooks, hypotheses: (seen.extend(hypotheses), measure(hooks, hypotheses))[1])
    trained = train(mixture_and_data(corpus), curriculum=CurriculumOptions(soft_epochs=9), report=report, epochs=1)
    loads = trained.history[0]
    assert all(np.count_nonzero(row > 0) <= N_EXPERTS for row in trained.loads)
    assert len(seen) == N and all(np.count_nonzero(each.routing_weights) <= 2 for each in seen)  # though training was soft
    assert 0 < loads["routing_entropy"] <= 1 and (loads["top_k"], loads["temperature"]) == (N_EXPERTS, 1.0)


def test_load_and_entropy_are_told_after_each_epoch(corpus) -> None:
    """Pitfall 2: a complete collapse went unseen."""
    report = Notes()
    trained = train(mixture_and_data(corpus), report=report, epochs=3)
    for name in ("routing_entropy", *(f"load/expert_{e}" for e in range(N_EXPERTS)), "load/als/expert_0"):
        assert [epoch for epoch, _ in report.of(f"dev/{name}")] == [0, 1, 2]
    for row in trained.history:
        assert sum(row[f"load/expert_{e}"] for e in range(N_EXPERTS)) == pytest.approx(1)
        for etiology in ("als", "typical"):
            assert sum(row[f"load/{etiology}/expert_{e}"] for e in range(N_EXPERTS)) == pytest.approx(1)
    assert len(trained.loads) == 3


def test_the_entropy_is_the_gates_own_and_not_that_of_the_weights_it_leads_to(corpus) -> None:
    """With one expert per utterance the weights are certain, whatever the gate thinks."""
    model, *data = mixture_and_data(corpus, routing=RoutingOptions(top_k=1))
    with torch.no_grad():
        model.gate.output.weight.zero_()
    row = train((model, *data), JointOptions(freeze_gate=True), epochs=1).history[0]
    assert row["routing_entropy"] == pytest.approx(1.0)


def test_the_gate_is_watched_in_training_too_under_the_epochs_temperature(corpus) -> None:
    report = Notes()
    curriculum = CurriculumOptions(soft_epochs=2, temperature_start=50.0)
    model, *data = mixture_and_data(corpus, balance=BalanceOptions(balance="none"))
    with torch.no_grad():
        model.gate.output.bias[1] = 4.0
    trained = train((model, *data), JointOptions(freeze_gate=True), curriculum=curriculum, report=report, epochs=3, eval_every=2)
    entropies = [value for _, value in report.of("train/routing_entropy")]
    assert [epoch for epoch, _ in report.of("train/load/expert_1")] == [0, 1, 2]
    assert entropies[0] > 0.95 and entropies[0] > entropies[1] > entropies[2]
    assert [(row["epoch"], row["temperature"], row["top_k"]) for row in trained.history] == [(1, 25.5, 3), (2, 1.0, 2)]


def test_the_last_epoch_is_scored_however_seldom_that_is_asked_for(corpus) -> None:
    report = Notes()
    trained = train(mixture_and_data(corpus), report=report, epochs=2, eval_every=9)
    assert [row["epoch"] for row in trained.history] == [1]
    assert report.of("dev/wer")[-1] == (1, trained.history[0]["wer"]) and trained.rate <= trained.start_rate


def test_an_expert_below_its_minimum_is_pulled_up(corpus) -> None:
    shares = []
    for balance in (
        BalanceOptions(balance="none"),
        BalanceOptions(balance="none", minimum_usage=0.3, minimum_usage_coefficient=5.0),
    ):
        model, *data = mixture_and_data(corpus, balance=balance)
        with torch.no_grad():
            model.gate.output.bias[0] = -3.0
        train((model, *data), JointOptions(asr_learning_rate=1e-2, gate_learning_rate=0.1), epochs=2)
        shares.append(float(model.window.rows[:4, 0].mean()))  # the last batch
    assert shares[1] > shares[0] + 0.02


@pytest.mark.parametrize(
    ("n_experts", "routing", "curriculum", "balance", "message"),
    [
        (4, {}, {}, {"minimum_usage": 0.3}, "minimum_usage=0.3: 4 experts can have 0.25 each"),
        (1, {}, {"router_noise": 1.0}, {"entropy_coefficient": 0.1}, "router_noise=1.0: num_experts=1 leaves"),
        (1, {}, {"soft_epochs": 1}, {}, "soft_epochs=1: num_experts=1 leaves"),
        (3, {"top_k": 3}, {"soft_epochs": 2}, {}, "soft_epochs=2: top_k=3 routes to all 3"),
    ],
)
def test_what_so_many_experts_leave_without_effect_is_told(n_experts, routing, curriculum, balance, message) -> None:
    parts = RoutingOptions(**routing), CurriculumOptions(**curriculum), BalanceOptions(**balance)
    assert any(message in fault for fault in experts_faults(n_experts, *parts))
    assert experts_faults(n_experts, RoutingOptions(), CurriculumOptions(), BalanceOptions()) == []


def test_a_collapsed_gate_shows_as_a_load_of_one(corpus) -> None:
    """Pitfall 2."""
    model, *data = mixture_and_data(corpus, routing=RoutingOptions(top_k=1))
    with torch.no_grad():
        model.gate.output.bias[1] = 100.0
    row = train((model, *data), epochs=1).history[0]
    assert row["load/expert_1"] == 1.0 and row["routing_entropy"] == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def planned_wer(monkeypatch: pytest.MonkeyPatch):
    """Makes the stage's dev WER a given one, and keeps the weights after every epoch; losses say the opposite."""
    states: list[dict] = []

    def make(*wers: float, start: float = 1.0) -> list[dict]:
        values = iter(wers)
        monkeypatch.setattr(JointHooks, "rate", lambda hooks, name, hypotheses: start)

        def scores(hooks: JointHooks, hypotheses) -> dict[str, float]:
            states.append(weights(hooks.module))
            wer = next(values)
            return {"wer": wer, "loss": -wer}

        monkeypatch.setattr(JointHooks, "scores", scores)
        return states

    return make


def test_the_best_epoch_by_wer_is_restored_never_the_last(corpus, planned_wer) -> None:
    """Pitfall 12: a loss with auxiliary terms in it chose the checkpoint."""
    states = planned_wer(0.5, 0.3, 0.3, 0.9)
    model, *data = mixture_and_data(corpus)
    trained = train((model, *data), epochs=4)
    assert (trained.epoch, trained.rate) == (1, 0.3)  # of equals the earlier
    assert not changed(states[1], model) and changed(states[3], model) and changed(states[2], model)
    assert model.phase.top_k == 2 and model.phase.temperature == 1.0


def test_the_start_is_kept_where_every_epoch_is_worse(corpus, planned_wer) -> None:
    """Three epochs of joint training took a mixture of few data from 47.3 to 48.7 % of test WER, and the best of them was kept."""
    planned_wer(0.5, 0.3, start=0.2)
    model, *data = mixture_and_data(corpus)
    before = weights(model)
    trained = train((model, *data), epochs=2)
    assert (trained.epoch, trained.rate, trained.start_rate) == (None, 0.2, 0.2)
    assert not changed(before, model) and trained.kept == "The start (every epoch was worse)"
    assert model.phase.top_k == 2


def test_an_epoch_as_good_as_the_start_is_kept(corpus, planned_wer) -> None:
    states = planned_wer(0.5, 0.2, 0.2, start=0.2)
    model, *data = mixture_and_data(corpus)
    trained = train((model, *data), epochs=3)
    assert (trained.epoch, trained.rate) == (1, 0.2) and not changed(states[1], model)


def test_no_epoch_of_joint_training_leaves_the_mixture_as_it_came_and_says_how_good_it_is(corpus) -> None:
    """Its dev WER was the largest float there is."""
    model, *data = mixture_and_data(corpus)
    before = weights(model)
    trained = train((model, *data), epochs=0)
    assert (
        trained.kept == "The start (there was no epoch)" and trained.history == () and 0 < trained.rate == trained.start_rate < 10
    )
    assert not changed(before, model)


def test_training_ends_after_patience(corpus, planned_wer) -> None:
    planned_wer(0.5, 0.4, 0.4, 0.4, 0.4, 0.4)
    options = JointOptions(asr_patience=2, asr_learning_rate=1e-2)
    assert [row["epoch"] for row in train(mixture_and_data(corpus), options, epochs=6).history] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "balance",
    [
        BalanceOptions(balance="kl", balance_coefficient=1.0),
        BalanceOptions(balance="switch", balance_coefficient=1.0),
        BalanceOptions(balance="none", minimum_usage=0.3333, minimum_usage_coefficient=10.0),
        BalanceOptions(balance="none", entropy_coefficient=1.0),
        BalanceOptions(balance="none", alignment_coefficient=1.0),
    ],
    ids=["kl", "switch", "minimum", "entropy", "alignment"],
)
def test_every_term_of_the_gates_loss_changes_what_is_learnt(corpus, balance: BalanceOptions) -> None:
    """Most keys of a document's configuration were ignored; here each one moves the gate elsewhere than without it."""
    gates = []
    for terms in (BalanceOptions(balance="none"), balance):
        model, *data = mixture_and_data(corpus, with_clusters=True, balance=terms)
        train((model, *data), epochs=1, batch_size=N)
        gates.append(torch.cat([parameter.detach().flatten() for parameter in model.gate.parameters()]))
    assert not torch.equal(*gates)


def test_alignment_pulls_the_gate_towards_the_clusters(corpus) -> None:
    manifest, root = corpus
    found = []
    for coefficient in (0.0, 5.0):
        balance = BalanceOptions(balance="none", alignment_coefficient=coefficient)
        model, train_set, dev_set = mixture_and_data(corpus, with_clusters=True, balance=balance)
        batch = {name: torch.stack([torch.as_tensor(train_set[k][name]) for k in range(N)]) for name in ("cluster_weights",)}
        train((model, train_set, dev_set), epochs=6, batch_size=N)
        items = [train_set[k] for k in range(N)]
        width = max(item["mel"].shape[1] for item in items)
        mel = torch.stack([torch.nn.functional.pad(torch.as_tensor(i["mel"]), (0, width - i["mel"].shape[1])) for i in items])
        routed = model.eval().route(mel, torch.tensor([item["n_frames"] for item in items]))
        found.append(float(-(batch["cluster_weights"] * routed.probabilities.detach().log()).sum(-1).mean()))
    assert found[1] < found[0]


def test_router_noise_is_in_training_only_and_from_the_seed(corpus) -> None:
    curriculum = CurriculumOptions(router_noise=2.0)
    runs = [mixture_and_data(corpus), mixture_and_data(corpus), mixture_and_data(corpus)]
    for toys, noisy in zip(runs, (curriculum, curriculum, CurriculumOptions()), strict=True):
        train(toys, curriculum=noisy, epochs=1)
    noisy, again, quiet = (weights(toys[0]) for toys in runs)
    assert all(torch.equal(noisy[name], again[name]) for name in noisy)
    assert any(not torch.equal(noisy[name], quiet[name]) for name in noisy)
    assert runs[0][0].phase.noise == 0.0


@pytest.mark.parametrize("mixing", ["delta", "loss"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_every_k_and_mixing_trains_and_scores(corpus, top_k: int, mixing: str) -> None:
    model, *data = mixture_and_data(corpus, routing=RoutingOptions(top_k=top_k, mixing=mixing))
    before = weights(model)
    trained = train((model, *data), epochs=1)
    assert any(name.endswith("lora_B") for name in changed(before, model))
    assert gate_names(model) <= changed(before, model)  # with k=1 by the balance loss
    assert np.isfinite(trained.rate) and np.isfinite(trained.history[0]["loss"])


def test_without_experts_it_trains_one_lora(corpus) -> None:
    manifest, root = corpus
    base = toy_base()
    model = toy_mixture(base, n_experts=0, adapters=AdapterOptions(lora_r=2, shared_r=5), awake=False)
    before = weights(model)
    data = dataset(manifest, root)
    trained = train((model, data, data), epochs=2)
    assert {name.rpartition(".")[2] for name in changed(before, model)} == {"shared_A", "shared_B"}
    assert trained.loads == () and set(trained.history[0]) == {"epoch", "wer", "cer", "loss"}


def test_cached_embeddings_train_the_same_mixture_as_computed_ones(corpus) -> None:
    """Design 7, one routing space: the cache is what the model would have computed."""
    manifest, root = corpus
    computed = mixture_and_data(corpus)
    model, _, dev_set = mixture_and_data(corpus)
    items = [dev_set[k] for k in range(N)]
    views = [(model._below(torch.as_tensor(item["mel"])[None])[1], torch.tensor([item["n_frames"]])) for item in items]
    vectors = torch.cat([model._embed(None, n_frames, view) for view, n_frames in views]).detach().numpy()
    cached = (model, dataset(manifest, root, extras={"embedding": vectors}), dev_set)
    assert train(cached, epochs=1).history[0]["loss"] == pytest.approx(train(computed, epochs=1).history[0]["loss"], rel=1e-3)


def test_the_same_seed_gives_the_same_mixture(corpus) -> None:
    """Design 11."""
    runs = []
    for _ in range(2):
        toys, report = mixture_and_data(corpus), Notes()
        trained = train(toys, report=report)
        runs.append((weights(toys[0]), trained.history, report.reported))
    assert runs[0][1:] == runs[1][1:] and all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_a_mixture_that_takes_no_precision_cannot_be_made() -> None:
    class Rigid(Mixture):
        """Computes in one precision alone."""

    with pytest.raises(TypeError, match="abstract.*use_precision"):
        Rigid()
