"""Hypotheses in the order of the utterances, under the training's own prompt, whatever the batches."""

import copy

import jiwer
import numpy as np
import pandas as pd
import pytest
import torch

from moe.experts.routed_lora import routed_layers
from moe.recognition.decoding import USUAL, confidence, decode, decode_ways
from moe.recognition.hypothesis_store import BatchStore
from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights, one_hot
from moe.system import DecodingOptions, Hypothesis
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.search import MIN_NEW_TOKENS, clean_texts
from moe.systems.whisper.tokens import END, label_ids, prompt_ids
from moe.systems.whisper_moe import decoding
from moe.systems.whisper_moe.decoding import decoder_prompt
from moe.systems.whisper_moe.model import WhisperMoE
from moe.text.error_rates import word_error_rate
from moe.training.batches import length_batches
from moe.training.dataset import SpeechDataset
from tests.toys.models import (
    ALL_LINEARS,
    CONTEXT,
    FULL,
    HALF,
    N_EXPERTS,
    adapter_options,
    batch_of,
    dataset,
    logits_of,
    system_of,
    tokenizer,
    toy_mixture,
)


@pytest.fixture(scope="module")
def model() -> WhisperMoE:
    return toy_mixture(adapters=adapter_options(ALL_LINEARS))


ONE_BUCKET = AudioContextOptions(context_floor_s=1.0, context_silence_s=0.2, context_bucket_s=2.0)


def in_context(data: SpeechDataset, context: AudioContextOptions, **options) -> SpeechDataset:
    """The same utterances as inputs of another context."""
    return dataset(pd.DataFrame(data.rows), data.root, context, **options)


def decode_in(
    model: WhisperMoE, data: SpeechDataset, context: AudioContextOptions, options: DecodingOptions, **more
) -> list[Hypothesis]:
    """What a model recognises in the utterances in a context."""
    return decode(system_of(model, context=context), in_context(data, context), options, **more)


def decoder_inputs(model: WhisperMoE, run) -> list[torch.Tensor]:
    """Token ids the decoder is fed while `run` runs."""
    fed = []
    with model.base.model.decoder.embed_tokens.register_forward_pre_hook(lambda module, args: fed.append(args[0])):
        run()
    return fed


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("n_experts", [0, N_EXPERTS])
def test_decoding_starts_from_the_prompt_that_training_teaches(data, beams: int, n_experts: int) -> None:
    """Pitfall 5: start doubled, and no language and task in training though decoding had them."""
    model = toy_mixture(n_experts=n_experts)
    batch = batch_of(data, [0, 4], CONTEXT)
    trained = decoder_inputs(model, lambda: model(batch["mel"], batch["n_frames"], batch["labels"]))[0]
    decoded = decoder_inputs(model, lambda: decode_in(model, data, CONTEXT, DecodingOptions(beam_size=beams)))
    prompt = prompt_ids(tokenizer())
    assert len(prompt) == 4 and all(row[:4] == prompt for row in trained.tolist())
    assert all(row == prompt for row in decoded[0].tolist())  # all of it at once, then token by token
    assert {tokens.shape[1] for tokens in decoded[1:5]} == {1}
    assert all(row[:4] == prompt for tokens in decoded if tokens.shape[1] > 1 for row in tokens.tolist())  # scoring's too
    start = prompt[0]
    assert (trained == start).sum() == len(trained) and not any((tokens == start).any() for tokens in decoded[1:5])


def test_what_training_predicts_after_the_prompt_is_text_and_its_end(data, model) -> None:
    """Pitfall 5, the other half: input shifted by one against the labels, the last label is the end of text."""
    batch = batch_of(data, [1], CONTEXT)
    fed = decoder_inputs(model, lambda: model(batch["mel"], batch["n_frames"], batch["labels"]))[0][0].tolist()
    labels = batch["labels"][0].tolist()
    assert fed[1:] == labels[:-1] and labels[-1] == tokenizer().convert_tokens_to_ids(END)
    assert labels == label_ids(tokenizer(), data.rows[1]["reference"])


def test_hypotheses_are_in_the_datasets_order_with_their_routing(data, model) -> None:
    """Batches run from long to short; the fixture's lengths are in no order."""
    found = decode_in(model, data, FULL, DecodingOptions(decoding_batch_size=2))
    assert [hypothesis.utterance_id for hypothesis in found] == [row["utterance_id"] for row in data.rows]
    for index, hypothesis in enumerate(found):
        batch = batch_of(data, [index])
        expected = model.route(batch["mel"], batch["n_frames"]).weights.weights[0].detach().numpy()
        np.testing.assert_allclose(hypothesis.routing_weights, expected, atol=HALF)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("gate_layer", ["0", "1", "last"])
def test_texts_do_not_depend_on_the_batch_size(data, beams: int, gate_layer: str) -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(gate_layer=gate_layer))
    options = [DecodingOptions(beam_size=beams, decoding_batch_size=size, max_tokens_per_s=1.0) for size in (1, 6)]
    one, six = ([hypothesis.text for hypothesis in decode_in(model, data, FULL, each)] for each in options)
    assert one == six and len(set(one)) > 1


def test_routing_weights_in_the_dataset_route_each_utterance_in_place_of_the_gate(data, model) -> None:
    weights = one_hot(torch.tensor([(number + 1) % N_EXPERTS for number in range(6)]), N_EXPERTS).weights.numpy()
    routed = in_context(data, CONTEXT, extras={"routing_weights": weights})
    with model.gate.register_forward_pre_hook(lambda *args: pytest.fail("the gate was asked")):
        found = decode(system_of(model), routed, DecodingOptions())
    assert [int(hypothesis.routing_weights.argmax()) for hypothesis in found] == [(number + 1) % N_EXPERTS for number in range(6)]


def test_the_loss_is_the_training_loss_of_each_utterance(data, model) -> None:
    found = decode_in(model, data, FULL, DecodingOptions(decoding_batch_size=4), with_loss=True)
    for index, hypothesis in enumerate(found):
        batch = batch_of(data, [index])
        expected = model.eval()(batch["mel"], batch["n_frames"], batch["labels"])["loss"].item()
        assert hypothesis.utterance_loss == pytest.approx(expected, abs=HALF)
    assert np.isnan(decode_in(model, data, FULL, DecodingOptions())[0].utterance_loss)


def test_a_cached_embedding_in_the_dataset_decides_the_routing(data, model) -> None:
    width = 2 * model.base.config.d_model
    data_with = in_context(data, CONTEXT, extras={"embedding": np.zeros((6, width), np.float32)})
    weights = [hypothesis.routing_weights for hypothesis in decode(system_of(model), data_with, DecodingOptions())]
    np.testing.assert_allclose(weights, [weights[0]] * len(weights), atol=1e-6)


def test_without_experts_there_is_no_routing(data) -> None:
    found = decode_in(toy_mixture(n_experts=0), data, CONTEXT, DecodingOptions())
    assert all(hypothesis.routing_weights is None and isinstance(hypothesis.text, str) for hypothesis in found)


def test_hypotheses_are_bounded_by_the_audio_and_never_longer_than_the_decoder(data, model) -> None:
    n_positions, n_prompt = model.base.config.max_target_positions, len(prompt_ids(tokenizer()))
    short, long = (decode_in(model, data, ONE_BUCKET, DecodingOptions(max_tokens_per_s=rate)) for rate in (0.1, 1e6))
    assert max(hypothesis.n_tokens for hypothesis in short) <= MIN_NEW_TOKENS
    assert max(hypothesis.n_tokens for hypothesis in long) == n_positions - n_prompt  # the random toy never ends by itself


def test_decoding_twice_is_the_same(data, model) -> None:
    first, second = (decode_in(model, data, CONTEXT, DecodingOptions(beam_size=2), with_loss=True) for _ in range(2))
    assert facts(first) == facts(second)


def facts(hypotheses: list[Hypothesis]) -> list[tuple]:
    """Everything in them, to the last bit."""
    rows = [None if h.routing_weights is None else h.routing_weights.tolist() for h in hypotheses]
    values = [(h.utterance_id, h.text, str(h.utterance_loss), h.mean_logprob, h.n_tokens) for h in hypotheses]
    return list(zip(values, rows, strict=True))


def rescored(model: WhisperMoE, data, index: int, tokens: list[int], weights: torch.Tensor | None) -> list[float]:
    """Log-probabilities of the tokens after the prompt by one teacher-forced forward of the utterance alone, experts mixed by hand."""
    batch = batch_of(data, [index])
    prompt = prompt_ids(tokenizer())
    inputs = torch.tensor([[*prompt, *tokens]])
    if model.routing_options.mixing == "loss" and weights is not None:
        chosen = [(expert, weight) for expert, weight in enumerate(weights.tolist()) if weight]
        parts = [
            weight * logits_of(model, batch["mel"], inputs, one_hot(torch.tensor([expert]), N_EXPERTS)).softmax(-1)
            for expert, weight in chosen
        ]
        probabilities = sum(parts)[0]
    else:
        routed = None if weights is None else RoutingWeights(weights[None], int((weights > 0).sum()))
        probabilities = logits_of(model, batch["mel"], inputs, routed).softmax(-1)[0]
    return [probabilities[len(prompt) - 1 + place, token].log().item() for place, token in enumerate(tokens)]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("n_experts", "mixing"), [(0, "delta"), (N_EXPERTS, "delta"), (N_EXPERTS, "loss")])
def test_mean_log_probability_equals_a_teacher_forced_rescoring(
    data, monkeypatch, plain: bool, beams: int, n_experts: int, mixing: str
) -> None:
    """Greedy and beams, deltas and losses mixed, our search and transformers'; the tokens are caught on their way, some ended by hand."""
    model = toy_mixture(n_experts, adapter_options(ALL_LINEARS), RoutingOptions(mixing=mixing))
    end, found_tokens, search = tokenizer().convert_tokens_to_ids(END), [], model.search

    def shortened(encoded, **options):
        tokens = search(encoded, **options)
        tokens[0, 3:] = end  # an utterance that ended by itself, padded as transformers pads
        found_tokens.extend(tokens.tolist())
        return tokens

    def watched(*arguments):
        said = say(*arguments)
        found_tokens.extend(said.tokens.tolist())
        return said

    say = model.say
    monkeypatch.setattr(decoding, "is_plain", lambda generation: plain)
    monkeypatch.setattr(model, "search", shortened)
    monkeypatch.setattr(model, "say", watched)
    found = decode_in(model, data, FULL, DecodingOptions(beam_size=beams, decoding_batch_size=4))
    batches = [int(index) for batch in length_batches(in_context(data, FULL), 4) for index in batch]
    for index, tokens in zip(batches, found_tokens, strict=True):
        weights = found[index].routing_weights
        tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        expected = rescored(model, data, index, tokens, None if weights is None else torch.from_numpy(weights))
        assert found[index].n_tokens == len(tokens)
        assert found[index].mean_logprob == pytest.approx(np.mean(expected), abs=1e-5)
    assert plain or min(hypothesis.n_tokens for hypothesis in found) == 4


def test_scoring_a_few_rows_at_a_time_changes_nothing(data, model, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "is_plain", lambda generation: False)
    whole = decode_in(model, data, FULL, DecodingOptions(beam_size=2))
    monkeypatch.setattr("moe.systems.whisper_moe.token_scores.LOGIT_BUDGET", 1)
    rows = decode_in(model, data, FULL, DecodingOptions(beam_size=2))
    assert [h.mean_logprob for h in whole] == pytest.approx([h.mean_logprob for h in rows], abs=1e-6)


def test_scoring_starts_from_the_prompt_of_the_language_asked_for(model, monkeypatch) -> None:
    prompt = prompt_ids(tokenizer())
    assert decoder_prompt(model, tokenizer()) == prompt
    monkeypatch.setattr(model.base.generation_config, "lang_to_id", {"<|en|>": prompt[1], "<|ne|>": 7})
    monkeypatch.setattr(model.base.generation_config, "language", "ne")
    assert decoder_prompt(model, tokenizer()) == [prompt[0], 7, *prompt[2:]]


def test_confidence_weighs_every_token_alike() -> None:
    sure, unsure = (
        Hypothesis("a", "x", mean_logprob=np.log(0.9), n_tokens=3),
        Hypothesis("b", "y", mean_logprob=np.log(0.1), n_tokens=1),
    )
    assert confidence([sure, unsure]) == pytest.approx((0.9**3 * 0.1) ** 0.25)
    assert confidence([sure, Hypothesis("c", "")]) == pytest.approx(0.9) and confidence([]) == 0.0


@pytest.mark.parametrize("beams", [1, 3])
def test_neither_batch_size_nor_neighbours_nor_order_change_a_hypothesis(data, model, beams: int) -> None:
    """In contexts of their own length, where neighbours of another length would be encoded with other silence."""
    small, large = (DecodingOptions(beam_size=beams, decoding_batch_size=size) for size in (1, 6))
    found = decode_in(model, data, CONTEXT, large)
    assert [h.text for h in decode_in(model, data, CONTEXT, small)] == [h.text for h in found]
    turned = dataset(pd.DataFrame(data.rows[::-1]), data.root)
    assert facts(decode(system_of(model), turned, large)[::-1]) == facts(found)


def test_a_batch_holds_one_context_and_all_batches_hold_every_utterance_once(data) -> None:
    batches = length_batches(data, 2)
    assert sorted(int(index) for batch in batches for index in batch) == list(range(6)) and max(map(len, batches)) <= 2
    for batch in batches:
        frames = [data[int(index)]["n_frames"] for index in batch]
        assert len({CONTEXT.n_frames(n, data.inputs.processor.feature_extractor) for n in frames}) == 1


def test_several_ways_at_once_are_what_each_is_alone(data, model) -> None:
    system = system_of(model)
    asks = {USUAL: system.ask_type(), "top 1": system.ask_type(top_k=1), **system.ablations()}
    together = decode_ways(system, data, DecodingOptions(), asks)
    for name, ask in asks.items():
        alone = decode(system, data, DecodingOptions(), ask)
        assert [each.text for each in together[name]] == [each.text for each in alone], name
        assert [each.mean_logprob for each in together[name]] == pytest.approx([each.mean_logprob for each in alone], abs=HALF)
        np.testing.assert_allclose(*([each.routing_weights for each in found] for found in (together[name], alone)), atol=HALF)
    assert together["expert_0"][0].text != together["expert_1"][0].text


def test_an_ablation_routes_every_utterance_alike_and_one_to_each_expert_alone(data, model) -> None:
    system = system_of(model)
    found = decode_ways(system, data, DecodingOptions(), system.ablations())
    rows = {name: np.stack([hypothesis.routing_weights for hypothesis in part]) for name, part in found.items()}
    assert list(rows) == [*(f"expert_{expert}" for expert in range(N_EXPERTS)), "uniform", "shared"]
    assert not rows["shared"].any()
    for expert in range(N_EXPERTS):
        assert (rows[f"expert_{expert}"] == np.eye(N_EXPERTS)[expert]).all()
    assert (rows["uniform"] == 1 / N_EXPERTS).all()


def test_the_shared_adapter_alone_is_the_model_without_experts(data, model) -> None:
    system = system_of(model)
    found = decode_ways(system, data, DecodingOptions(), {"shared": system.ablations()["shared"]})["shared"]
    alone = copy.deepcopy(model)
    for _, layer in routed_layers(alone.base):
        layer.lora_B.data.zero_()
    other = decode(system_of(alone), data, DecodingOptions())
    assert [each.text for each in found] == [each.text for each in other]
    bare = system_of(toy_mixture(adapters=adapter_options(shared_expert=False)))
    assert "shared" not in bare.ablations()


def test_a_killed_decoding_goes_on_with_the_batches_it_has_and_ends_the_same(data, model, tmp_path, monkeypatch) -> None:
    options = DecodingOptions(decoding_batch_size=1)
    undisturbed = decode_in(model, data, CONTEXT, options, with_loss=True)
    search, n_done = model.say, []

    def killed(*arguments):
        if len(n_done) == 3:
            raise KeyboardInterrupt
        n_done.append(1)
        return search(*arguments)

    monkeypatch.setattr(model, "say", killed)
    with pytest.raises(KeyboardInterrupt):
        decode_in(model, data, CONTEXT, options, with_loss=True, store=BatchStore(tmp_path))
    n_done.clear()
    store = BatchStore(tmp_path)
    assert facts(decode_in(model, data, CONTEXT, options, with_loss=True, store=store)) == facts(undisturbed)
    assert (len(n_done), store.n_read) == (3, 3) and store.seconds > 0


@pytest.mark.parametrize("damage", ["cut", "empty", "other utterances"])
def test_a_kept_batch_that_is_damaged_or_of_other_utterances_is_decoded_again(data, model, tmp_path, damage: str) -> None:
    found = decode_in(model, data, CONTEXT, DecodingOptions(), store=BatchStore(tmp_path))
    path = sorted(tmp_path.iterdir())[0]
    text = path.read_text()
    path.write_text(
        {"cut": text[:50], "empty": "", "other utterances": text.replace('"u0"', '"v"').replace('"u1"', '"v"')}[damage]
    )
    again = BatchStore(tmp_path)
    assert facts(decode_in(model, data, CONTEXT, DecodingOptions(), store=again)) == facts(found)
    assert again.n_read == len(list(tmp_path.iterdir())) - 1 and path.read_text().count('"v"') == 0


def test_texts_are_cleaned_of_specials_and_spaces() -> None:
    ids = torch.tensor([prompt_ids(tokenizer()) + label_ids(tokenizer(), "oak elm")[3:] + [tokenizer().pad_token_id] * 3])
    assert clean_texts(tokenizer(), ids) == ["oak elm"]


def test_word_error_rate_by_hand() -> None:
    assert word_error_rate(["a b c d", "e f"], ["a x c", "e f g"]) == pytest.approx(3 / 6)  # substitution, deletion, insertion
    assert word_error_rate(["a b"], [""]) == 1.0 and word_error_rate(["a b"], ["a b"]) == 0.0
    references, hypotheses = ["a b c", "d", "e f g h"], ["a c", "d d", "x f g"]
    assert word_error_rate(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="beam_size=0.*decoding_batch_size=0"):
        DecodingOptions(beam_size=0, decoding_batch_size=0)
    assert Hypothesis("u", "t").routing_weights is None
