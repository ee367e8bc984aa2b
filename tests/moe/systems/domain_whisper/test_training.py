"""What trains and what does not, that a token comes to decide the text, and that no kill changes a bit."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import WhisperForConditionalGeneration

from moe.audio.augmentation import AugmentationOptions
from moe.experts.routed_lora import RoutedLinear
from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.domain_whisper.asks import DomainAsk, WrongDomain
from moe.systems.domain_whisper.classifier import train_classifier
from moe.systems.domain_whisper.domains import NO_DOMAIN, DomainOptions, Domains, domains_of
from moe.systems.domain_whisper.options import BalanceOptions, DomainTrainingOptions, LossOptions, TokenOptions
from moe.systems.domain_whisper.system import DomainSystem, load
from moe.systems.domain_whisper.training import balanced, train
from moe.systems.domain_whisper.unfreezing import ALL, BLOCKS, LORA, UnfreezeOptions, depths, usual_learning_rate
from moe.systems.whisper.base_model import load_base
from moe.training.batches import Draw, collate
from moe.training.checkpoints import CheckpointOptions, Checkpoints
from moe.training.dataset import SpeechDataset
from moe.training.trainer import ResumableTrainer
from tests.toys.checkpoints import Killed, Recorded
from tests.toys.domain import DOMAINS, RATES, toy_domain
from tests.toys.models import write_corpus
from tests.toys.training import Notes, changed, plan, training, weights

PLAIN = AugmentationOptions(n_masks=0, gain=0.0)
GREEDY = DecodingOptions(max_tokens_per_s=3.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("corpus")
    return write_corpus(root), root


def sets(system: DomainSystem, corpus) -> tuple[SpeechDataset, SpeechDataset, SpeechDataset]:
    rows, root = corpus
    found = system.from_manifest(rows)
    train_set = SpeechDataset(rows, root, system.inputs, PLAIN, 3, found, trains=True)
    return train_set, SpeechDataset(rows, root, system.inputs, extras=found), SpeechDataset(rows, root, system.inputs)


def trained(system: DomainSystem, corpus, around=None, **options):
    chosen = DomainTrainingOptions(**{"domain_epochs": 2, **options})
    return train(system, *sets(system, corpus), chosen, around or training(plan(batch_size=3)))


UNFREEZINGS = {
    "blocks": UnfreezeOptions(unfreeze_encoder_blocks=1, unfreeze_decoder_blocks=1, decoder_parts="mlp"),
    "attention": UnfreezeOptions(unfreeze_encoder_blocks=0, unfreeze_decoder_blocks=2, decoder_parts="attention"),
    "lora": UnfreezeOptions(unfreeze="lora", domain_lora_r=2),
    "all": UnfreezeOptions(unfreeze="all"),
    "none": UnfreezeOptions(unfreeze="none"),
}
TRAINS: dict[str, Callable[[str], bool]] = {
    "blocks": lambda name: (
        "encoder.layers.1." in name
        or ("decoder.layers.1." in name and any(part in name for part in ("fc1", "fc2", "final_layer_norm")))
    ),
    "attention": lambda name: "decoder.layers." in name and any(part in name for part in ("self_attn", "encoder_attn")),
    "lora": lambda name: "shared_" in name,
    "all": lambda name: "embed_tokens" not in name and "encoder.embed_positions" not in name,
    "none": lambda name: False,
}


@pytest.mark.parametrize("name", UNFREEZINGS)
def test_the_rows_and_what_is_unfrozen_change_and_nothing_else_has_a_gradient(name: str, corpus, tmp_path: Path) -> None:
    system = toy_domain(tmp_path, UNFREEZINGS[name])
    before = weights(system.module)
    wanted = {each for each, value in before.items() if each == "rows" or (TRAINS[name](each) and value.numel())}
    assert {each for each, value in system.module.named_parameters() if value.requires_grad} == wanted
    trained(system, corpus)
    gradients = {each for each, value in system.module.named_parameters() if value.grad is not None}
    after = changed(before, system.module)
    assert "rows" in after and after <= wanted and gradients <= wanted
    assert name == "none" or len(after) > 1


def test_the_optimizers_state_of_the_tokens_is_as_large_as_they_are(
    corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original kept the whole table and its Adam state alive for two rows."""
    states: list[dict] = []
    ends = ResumableTrainer.update_ends
    monkeypatch.setattr(
        ResumableTrainer, "update_ends", lambda self: (states.append(self.optimizer.state_dict()["state"]), ends(self))[1]
    )
    trained(toy_domain(tmp_path, UNFREEZINGS["none"]), corpus)
    assert [tuple(state["exp_avg"].shape) for state in states[0].values()] == [(2, 32)]


def test_frozen_blocks_have_no_backward_pass(corpus, tmp_path: Path) -> None:
    system = toy_domain(tmp_path, UNFREEZINGS["blocks"])
    outputs: dict[int, bool] = {}
    for number, layer in enumerate(system.module.base.model.encoder.layers):
        layer.register_forward_hook(lambda _, __, out, number=number: outputs.__setitem__(number, out.requires_grad))
    system.module(**collate(sets(system, corpus)[0], [sets(system, corpus)[0][0]]))
    assert outputs == {0: False, 1: True}


def test_the_rate_of_a_block_falls_with_its_depth(tmp_path: Path) -> None:
    system = toy_domain(tmp_path, UnfreezeOptions(layer_decay=0.5))
    rates = {group.name: group.learning_rate for group in system.parameter_groups()}
    top, below = (rates[f"encoder_block_{depth}_from_the_top"] for depth in (1, 2))
    assert top == RATES[0] and below == RATES[0] / 2 and rates["domain_tokens"] == RATES[1]


def test_by_default_all_blocks_of_a_small_base_train_and_more_by_hand_are_refused(tmp_path: Path) -> None:
    system = toy_domain(tmp_path)
    assert max(depths(system.module.base, UnfreezeOptions()).values()) == 1
    with pytest.raises(ValueError, match="unfreeze_decoder_blocks=3: the base has 2"):
        toy_domain(tmp_path, UnfreezeOptions(unfreeze_decoder_blocks=3))


def test_dropout_is_in_the_modules_that_are_made(tmp_path: Path) -> None:
    """Set after construction it has no effect: modules read it when they are made."""
    toy_domain(tmp_path)
    made = load_base(str(tmp_path), 0.37).model
    assert {layer.dropout for layer in [*made.model.encoder.layers, *made.model.decoder.layers]} == {0.37}


def test_a_token_comes_to_decide_the_text(corpus, tmp_path: Path) -> None:
    """The same audio twice, with another text for each domain: after training the token alone says which."""
    rows, root = corpus
    twice = [
        rows.assign(etiology=name, reference=text, utterance_id=rows["utterance_id"] + name)
        for name, text in (("als", "oak"), ("typical", "elm elm"))
    ]
    both = pd.concat(twice, ignore_index=True)
    system = toy_domain(tmp_path, tokens=TokenOptions(token_dropout=0.0))
    trained(system, (both, root), training(plan(epochs=40, batch_size=6, learning_rate=1e-2)), domain_patience=50)
    data = sets(system, (both, root))[1]
    for ask, wrong in ((DomainAsk(domain="corpus"), False), (WrongDomain(), True)):
        texts = [each.text for each in decode(system, data, GREEDY, ask)]
        right = np.mean([text == reference for text, reference in zip(texts, both["reference"], strict=True)])
        assert right < 0.1 if wrong else right > 0.9, texts


def test_the_classifier_is_calibrated_on_speakers_and_not_on_rows(
    corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a speaker's utterances in each half of dev would make any temperature look right."""
    system, rows, given = toy_domain(tmp_path), corpus[0], []
    monkeypatch.setattr("moe.systems.domain_whisper.classifier.train_gate", lambda *each: given.append(each))
    plain = SpeechDataset(rows, corpus[1], system.inputs)
    numbers = np.where(np.arange(len(rows)) == 1, NO_DOMAIN, np.arange(len(rows)) % 2)
    train_classifier(system.module, (plain, numbers), (plain, numbers), 0, Notes(), Checkpoints())
    assert given[0][-1] == [speaker for place, speaker in enumerate(rows["speaker"]) if place != 1]
    assert len(given[0][2]) == len(rows) - 1


def test_who_was_trained_without_tokens_gives_none(corpus, tmp_path: Path) -> None:
    """Neither dev nor anybody who asks gets the row of a token that never learnt anything; also after it was saved."""
    system = toy_domain(tmp_path / "base", tokens=TokenOptions(token_dropout=1.0))
    rows = system.module.rows.detach().clone()
    done = trained(system, corpus)
    assert done.classifier is None and system.ablations() == {} and torch.equal(system.module.rows, rows)
    data = sets(system, corpus)[1]
    plain = [each.text for each in decode(system, data, GREEDY, DomainAsk(domain="none"))]
    for ask in (DomainAsk(), DomainAsk(domain="corpus"), WrongDomain()):
        found = decode(system, data, GREEDY, ask)
        assert [each.text for each in found] == plain and {each.details["domain"] for each in found} == {"none"}
    system.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert [each.text for each in decode(again, data, GREEDY, DomainAsk(domain="corpus"))] == plain
    with pytest.raises(ValueError, match="domain=als: the model was trained without tokens"):
        again.check(DomainAsk(domain="als"))


def test_the_draw_of_the_token_is_of_seed_epoch_and_utterance(corpus, tmp_path: Path) -> None:
    system = toy_domain(tmp_path, tokens=TokenOptions(token_dropout=0.5))
    data = sets(system, corpus)[0]
    kept = np.array([[data[Draw(index, epoch)]["keeps_token"] for index in range(len(data))] for epoch in range(60)])
    again = np.array([[data[Draw(index, epoch)]["keeps_token"] for index in range(len(data))] for epoch in range(60)])
    assert (kept == again).all() and 0.4 < kept.mean() < 0.6 and len({tuple(row) for row in kept}) > 20
    assert all(SpeechDataset(corpus[0], corpus[1], system.inputs)[index]["keeps_token"] for index in range(len(data)))


@pytest.mark.parametrize("name", ["lora", "all"])
def test_activations_computed_again_give_the_same_gradients(name: str, corpus, tmp_path: Path) -> None:
    gradients = []
    for again in (False, True):
        system = toy_domain(tmp_path / str(again), UNFREEZINGS[name], dropout=0.0)
        data = sets(system, corpus)[1]
        system.module.train()
        if again:
            system.module.enable_checkpointing()
        system.module(**collate(data, [data[0], data[1]]))["loss"].backward()
        gradients.append({each: value.grad for each, value in system.module.named_parameters() if value.grad is not None})
    plain, recomputed = gradients
    assert set(plain) == set(recomputed) and len(plain) > 2
    for each, gradient in plain.items():
        torch.testing.assert_close(recomputed[each], gradient, atol=1e-5, rtol=1e-3)


def test_weights_of_domains_are_divided_by_their_sum(corpus, tmp_path: Path) -> None:
    systems = [toy_domain(tmp_path / str(weight), losses=LossOptions(domain_loss_weight=weight)) for weight in (1.0, 3.0)]
    data = sets(systems[0], corpus)[1]
    plain, weighted = (system.module(**collate(data, [data[0], data[1]])) for system in systems)
    als, typical = plain["utterance_loss"].tolist()
    assert float(plain["loss"].detach()) == pytest.approx((als + typical) / 2)
    assert float(weighted["loss"].detach()) == pytest.approx((3 * als + typical) / 4, rel=1e-5)


def test_smoothing_is_of_training_alone(corpus, tmp_path: Path) -> None:
    system = toy_domain(tmp_path, losses=LossOptions(label_smoothing=0.2), dropout=0.0)
    data = sets(system, corpus)[1]
    batch = collate(data, [data[0]])
    judged = float(system.module.eval()(**batch)["loss"].detach())
    assert float(system.module.train()(**batch)["loss"].detach()) > judged + 0.01


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (BalanceOptions(), [2, 5]),
        (BalanceOptions(balance_domains=True), [5, 5]),
        (BalanceOptions(oversample=2.5), [5, 5]),
        (BalanceOptions(oversample=2.0), [4, 5]),
    ],
)
def test_an_epoch_has_every_utterance_and_repeats_what_is_asked(options: BalanceOptions, wanted: list[int]) -> None:
    numbers = np.array([0, 1, 1, -1, 1, 0, 1, 1])  # als, typical, none
    rows = balanced(numbers, DOMAINS.is_target, options, seed=0)
    assert set(rows) == set(range(8)) and (balanced(numbers, DOMAINS.is_target, options, 0) == rows).all()
    assert [int((numbers[rows] == number).sum()) for number in (0, 1)] == wanted and (numbers[rows] == -1).sum() == 1
    counts = np.bincount(rows)
    assert counts[numbers == 0].max() - counts[numbers == 0].min() <= 1, "repeated alike"


def test_killed_and_resumed_it_ends_with_the_same_bits(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(checkpoints: Checkpoints | None):
        system = toy_domain(tmp_path / "base", tokens=TokenOptions(token_dropout=0.4))
        around = dataclasses.replace(training(plan(epochs=2, batch_size=2), Notes(), checkpoints), eval_every_updates=4)
        done = trained(system, corpus, around)
        return system, (done.history, done.epoch, done.rate, done.classifier.result.metrics)

    undisturbed, outcome = run(None)
    ends = ResumableTrainer.update_ends
    for stop_at in (3, 4, 5):  # of 6: at the end of an epoch, of a validation, and between

        def update_ends(trainer: ResumableTrainer, stop_at: int = stop_at) -> None:
            if trainer.state.global_step == stop_at:
                raise Killed
            ends(trainer)

        monkeypatch.setattr(ResumableTrainer, "update_ends", update_ends)
        with pytest.raises(Killed):
            run(Checkpoints(tmp_path / "kept", CheckpointOptions(save_every_n_updates=1), Recorded()))
    monkeypatch.setattr(ResumableTrainer, "update_ends", ends)
    resumed, reached = run(Checkpoints(tmp_path / "kept", CheckpointOptions(save_every_n_updates=1), Recorded()))
    assert reached == outcome
    assert all(torch.equal(value, weights(resumed.module)[name]) for name, value in weights(undisturbed.module).items())


def test_a_saved_lora_is_peft_s_and_its_base_an_ordinary_whisper(corpus, tmp_path: Path) -> None:
    system = toy_domain(tmp_path / "base", UnfreezeOptions(unfreeze="lora", domain_lora_r=2))
    system.save(tmp_path / "model")
    base = WhisperForConditionalGeneration.from_pretrained(tmp_path / "model" / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "model" / "shared").eval()
    assert any(isinstance(module, RoutedLinear) for module in system.module.modules())
    data = sets(system, corpus)[1]
    batch, prompt = collate(data, [data[0]]), torch.tensor([system.module.prompts.of(0)])
    window = 2 * base.config.max_source_positions
    mel = torch.nn.functional.pad(batch["mel"], (0, window - batch["mel"].shape[-1]), value=-1.5)
    with torch.no_grad():
        wanted = theirs(input_features=mel, decoder_input_ids=prompt).logits[:, -1, : system.module.n_old].log_softmax(-1)
    found = system.module.token_logprobs(system.module.encode(mel), prompt, wanted.argmax(-1, keepdim=True))
    assert float(found) == pytest.approx(float(wanted.max()), abs=2e-2)  # the base is saved in half precision


def test_domains_are_two_or_each_or_named() -> None:
    etiologies = pd.Series(["typical", "als", "cp", "als", "unknown"])
    assert domains_of(DomainOptions(), etiologies).numbers(etiologies).tolist() == [0, 1, 1, 1, -1]
    each = domains_of(DomainOptions(domains="each"), etiologies)
    assert each.names == ("als", "cp", "typical") and each.is_target == (True, True, False)
    named = domains_of(DomainOptions(domains="als, typical"), etiologies)
    assert named.numbers(etiologies).tolist() == [1, 0, -1, 0, -1] and Domains(named.names, named.normal).of("cp") is None
    with pytest.raises(ValueError, match="60 % of the train split belong to none of als, cp; at most half may"):
        domains_of(DomainOptions(domains="als,cp"), pd.Series(["als", "cp", "stroke", "stroke", "typical"]))


@pytest.mark.parametrize(
    ("unfreeze", "base", "rate"),
    [
        (BLOCKS, {"init_from": "scratch"}, 1e-3),
        (ALL, {"init_from": "scratch", "synthetic": True}, 1e-3),
        (BLOCKS, {"taken_from": "openai/whisper-small"}, 1e-4),
        (BLOCKS, {"init_from": "somewhere", "synthetic": True}, 1e-4),
        (ALL, {}, 1e-4),
        (LORA, {}, 1e-3),
    ],
)
def test_weights_that_were_loaded_train_at_a_lower_rate(unfreeze: str, base: dict[str, object], rate: float) -> None:
    assert usual_learning_rate(unfreeze, base) == rate
