"""A CTC with LoRA: parity with PEFT, what trains, routing that is the same everywhere, and the contract's other half."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import Wav2Vec2BertForCTC

from moe.experts.routed_lora import routed_layers
from moe.recognition.decoding import decode
from moe.routing.weights import one_hot
from moe.system import DecodingOptions, Routes
from moe.systems.table import load_system
from moe.systems.wav2vec2_ctc.asks import CTCAsk, FixedRouting
from moe.systems.wav2vec2_ctc.building import LearningRates, build
from moe.systems.wav2vec2_ctc.mixture_system import CTCMixtureSystem
from moe.systems.wav2vec2_ctc.options import CTCExpertOptions
from moe.systems.wav2vec2_ctc.training import CTCTrainingOptions, train
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary
from moe.training.batches import collate
from moe.training.loop import seed_everything
from tests.toys.ctc import ctc_dataset, toy_ctc, toy_mixture, toy_options
from tests.toys.models import WORDS, write_corpus
from tests.toys.training import Notes, changed, plan, training, weights

N_EXPERTS = 3
LAYERS = ["0", "1", "last"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, tuple(0.5 + 0.03 * (number * 7 % 5) for number in range(8))), root


def batch_of(system, corpus) -> dict:
    data = ctc_dataset(system, *corpus)
    return collate(data, [data[index] for index in range(len(data))])


def said(system, batch, weights=None) -> torch.Tensor:
    with torch.no_grad():
        return system.module.log_probabilities(batch["features"], batch["n_frames"], weights=weights)


def one_lora(**changes):
    seed_everything(0)
    experts = CTCExpertOptions(lora_r=2)
    return build(toy_options(**changes), Vocabulary.of(WORDS, 1), "en", "basic", LearningRates(1e-2), experts)


def test_every_projection_of_the_conformer_has_experts_above_the_gates_layer() -> None:
    names = {layer: [name for name, _ in routed_layers(toy_mixture(gate_layer=layer).module.network)] for layer in LAYERS}
    assert len(names["0"]) == len(names["last"]) == 4 and len(names["1"]) == 2
    assert all(name.endswith(("linear_q", "linear_v")) for name in names["0"])
    with pytest.raises(ValueError, match="gate_layer=3: the model has layers 0 to 2"):
        toy_mixture(gate_layer="3")


@pytest.mark.parametrize("layer", LAYERS)
def test_what_the_gate_reads_depends_on_the_utterance_alone(corpus, layer: str) -> None:
    system = toy_mixture(gate_layer=layer)
    data = ctc_dataset(system, *corpus)
    together = system.embed(batch_of(system, corpus))
    alone = torch.cat([system.embed(system.inputs.collate([data[index]])) for index in range(len(data))])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=2e-3)  # rounded to half precision
    system.module.train()
    torch.testing.assert_close(system.embed(batch_of(system, corpus)), together)  # no dropout, though the rest trains
    assert system.module.network.training


def test_an_expert_alone_is_what_peft_makes_of_its_folder(corpus, tmp_path: Path) -> None:
    system = toy_mixture(shared_expert=False)
    system.save(tmp_path / "model")
    batch = batch_of(system, corpus)
    mask = (torch.arange(batch["features"].shape[1]) < batch["n_frames"][:, None]).long()
    for expert in range(N_EXPERTS):
        base = Wav2Vec2BertForCTC.from_pretrained(tmp_path / "model" / "network").eval()
        theirs = PeftModel.from_pretrained(base, tmp_path / "model" / f"expert_{expert}").eval()
        with torch.no_grad():
            wanted = theirs(batch["features"], attention_mask=mask).logits.log_softmax(-1)
        found = said(system, batch, one_hot(torch.full((len(mask),), expert), N_EXPERTS))
        torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=1e-4, rtol=1e-4)


def test_every_expert_and_the_gate_get_a_gradient(corpus) -> None:
    system = toy_mixture(top_k=3)
    system.module.train()
    system.module(**batch_of(system, corpus))["loss"].backward()
    for _, layer in routed_layers(system.module.network):
        assert (layer.lora_A.grad.abs().sum((1, 2)) > 0).all() and (layer.lora_B.grad.abs().sum((1, 2)) > 0).all()
    assert system.gate.output.weight.grad.abs().sum() > 0


def test_routing_in_training_is_that_of_decoding_and_a_given_embedding_changes_nothing(corpus) -> None:
    system = toy_mixture()
    batch = batch_of(system, corpus)
    routed = [system.module.route(batch["features"], batch["n_frames"], each) for each in (None, system.embed(batch))]
    trained = system.module(**batch)["probabilities"]
    torch.testing.assert_close(routed[0][0].weights, routed[1][0].weights)
    torch.testing.assert_close(trained, routed[0][2])
    found = decode(system, ctc_dataset(system, *corpus), DecodingOptions())
    np.testing.assert_allclose([each.routing_weights for each in found], routed[0][0].shares().detach().numpy(), atol=1e-5)


def test_the_ablations_are_the_experts_and_their_mean_and_fewer_can_be_asked_for(corpus) -> None:
    system = toy_mixture(top_k=2)
    assert isinstance(system, Routes) and set(system.ablations()) == {"expert_0", "expert_1", "expert_2", "uniform"}
    data = ctc_dataset(system, *corpus)
    alone = decode(system, data, DecodingOptions(), FixedRouting(weights=(0.0, 1.0, 0.0)))
    assert all(each.routing_weights.tolist() == [0, 1, 0] for each in alone)
    one = decode(system, data, DecodingOptions(), CTCAsk(top_k=1))
    assert all(np.count_nonzero(each.routing_weights) == 1 for each in one) and system.top_k == 2
    measured = system.measures(decode(system, data, DecodingOptions()))
    assert sum(measured[f"load/expert_{expert}"] for expert in range(N_EXPERTS)) == pytest.approx(1)
    assert 0 < measured["routing_entropy"] <= 1 and "blank_share" in measured
    with pytest.raises(ValueError, match="top_k=4: must be between 1 and 3"):
        system.check(CTCAsk(top_k=4))


def test_a_mixture_trains_and_is_read_from_its_folder_as_it_was_saved(corpus, tmp_path: Path) -> None:
    seed_everything(0)
    system = toy_mixture()
    before, report = weights(system.module), Notes()
    data = ctc_dataset(system, *corpus)
    data.extras = {"embedding": system.embed(batch_of(system, corpus))}
    options = CTCTrainingOptions(ctc_train="lora", ctc_patience=9)
    done = train(system, data, data, options, training(plan(epochs=2, batch_size=4), report))
    moved = changed(before, system.module)
    assert moved and not any(
        name.startswith("network.wav2vec2_bert.encoder") and "lora" not in name and "shared" not in name for name in moved
    )
    assert {group.name for group in system.parameter_groups()} == {"lora", "head", "gate"}
    assert len(done.loads) == 2 and {"load/als/expert_0", "routing_entropy", "cer"} <= set(done.history[0])
    system.save(tmp_path / "model")
    again = load_system(tmp_path / "model")
    assert isinstance(again, CTCMixtureSystem) and again.record == system.record
    batch = batch_of(system, corpus)
    system.module.eval()
    weighted = [each.module.route(batch["features"], batch["n_frames"])[0] for each in (system, again)]
    torch.testing.assert_close(said(system, batch, weighted[0]), said(again, batch, weighted[1]))


def test_one_lora_starts_as_the_network_without_and_trains_with_the_head_alone(corpus, tmp_path: Path) -> None:
    system = one_lora()
    seed_everything(0)
    bare = build(toy_options(), Vocabulary.of(WORDS, 1), "en", "basic", LearningRates(1e-2))
    batch = batch_of(system, corpus)
    system.module.eval(), bare.module.eval()
    torch.testing.assert_close(said(system, batch), said(bare, batch))
    before = weights(system.module)
    data = ctc_dataset(system, *corpus)
    train(system, data, data, CTCTrainingOptions(ctc_train="lora", ctc_patience=9), training(plan(epochs=1)))
    moved = changed(before, system.module)
    assert moved == {name for name in before if "shared" in name or "lm_head" in name}
    system.save(tmp_path / "model")
    again = load_system(tmp_path / "model")
    system.module.eval()
    torch.testing.assert_close(said(system, batch), said(again, batch))
    assert again.record.title == "Wav2Vec2-BERT CTC, one LoRA" and not isinstance(again, Routes)


def test_the_head_can_train_alone_first(corpus, monkeypatch) -> None:
    system = toy_ctc()
    moved, real = [], train.__globals__["fit"]

    def recorded(model, *arguments):
        before = weights(model.network)
        summary = real(model, *arguments)
        moved.append(changed(before, model.network))
        return summary

    monkeypatch.setitem(train.__globals__, "fit", recorded)
    data = ctc_dataset(system, *corpus)
    done = train(system, data, data, CTCTrainingOptions(head_epochs=2, ctc_patience=9), training(plan(epochs=1)))
    assert moved[0] == {"lm_head.weight", "lm_head.bias"} and len(moved[1]) > 10
    assert [each.n_epochs for each in (*done.phases, done.summary)] == [2, 1]
