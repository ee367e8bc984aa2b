"""Hypotheses in the order of the utterances, under the training's own prompt, whatever the batches."""

import jiwer
import numpy as np
import pytest
import torch
from toy_models import ALL_LINEARS, CONTEXT, N_EXPERTS, adapter_options, dataset, tokenizer, toy_mixture, write_corpus

from moe.batches import collator
from moe.decoding import DecodingOptions, Hypothesis, clean_texts, decode, word_error_rate
from moe.features import AudioContext
from moe.routing import one_hot
from moe.tokens import END, label_ids, prompt_ids
from moe.whisper_moe import RoutingOptions, WhisperMoE

FULL = AudioContext(audio_context="full")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("corpus")
    return dataset(write_corpus(root), root)


@pytest.fixture(scope="module")
def model() -> WhisperMoE:
    return toy_mixture(adapters=adapter_options(ALL_LINEARS))


def decoder_inputs(model: WhisperMoE, run) -> list[torch.Tensor]:
    """Token ids the decoder is fed while `run` runs."""
    fed = []
    decoder = model.base.model.decoder
    with decoder.register_forward_pre_hook(lambda module, args, kwargs: fed.append(kwargs["input_ids"]), with_kwargs=True):
        run()
    return fed


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("n_experts", [0, N_EXPERTS])
def test_decoding_starts_from_the_prompt_that_training_teaches(data, beams: int, n_experts: int) -> None:
    """Pitfall 5: start doubled, and no language and task in training though decoding had them."""
    model = toy_mixture(n_experts=n_experts)
    batch = collator(data.processor, CONTEXT)([data[0], data[4]])
    trained = decoder_inputs(model, lambda: model(batch["mel"], batch["n_frames"], batch["labels"]))[0]
    decoded = decoder_inputs(model, lambda: decode(model, data, CONTEXT, DecodingOptions(beam_size=beams)))
    prompt = prompt_ids(tokenizer())
    assert len(prompt) == 4 and all(row[:4] == prompt for row in trained.tolist())
    assert all(row == prompt for row in decoded[0].tolist())  # all of it at once, then token by token
    assert {tokens.shape[1] for tokens in decoded[1:]} == {1}
    start = prompt[0]
    assert (trained == start).sum() == len(trained) and not any((tokens == start).any() for tokens in decoded[1:5])


def test_what_training_predicts_after_the_prompt_is_text_and_its_end(data, model) -> None:
    """Pitfall 5, the other half: input shifted by one against the labels, the last label is the end of text."""
    batch = collator(data.processor, CONTEXT)([data[1]])
    fed = decoder_inputs(model, lambda: model(batch["mel"], batch["n_frames"], batch["labels"]))[0][0].tolist()
    labels = batch["labels"][0].tolist()
    assert fed[1:] == labels[:-1] and labels[-1] == tokenizer().convert_tokens_to_ids(END)
    assert labels == label_ids(tokenizer(), data.rows[1]["reference"])


def test_hypotheses_are_in_the_datasets_order_with_their_routing(data, model) -> None:
    """Batches run from long to short; the fixture's lengths are in no order."""
    found = decode(model, data, FULL, DecodingOptions(decoding_batch_size=2))
    assert [hypothesis.utterance_id for hypothesis in found] == [row["utterance_id"] for row in data.rows]
    for index, hypothesis in enumerate(found):
        batch = collator(data.processor, FULL)([data[index]])
        expected = model.route(batch["mel"], batch["n_frames"]).weights.weights[0].detach().numpy()
        np.testing.assert_allclose(hypothesis.routing_weights, expected, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("gate_layer", ["0", "1", "last"])
def test_texts_do_not_depend_on_the_batch_size(data, beams: int, gate_layer: str) -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(gate_layer=gate_layer))
    options = [DecodingOptions(beam_size=beams, decoding_batch_size=size, max_tokens_per_s=1.0) for size in (1, 6)]
    one, six = ([hypothesis.text for hypothesis in decode(model, data, FULL, each)] for each in options)
    assert one == six and len(set(one)) > 1


def test_a_policy_routes_by_utterance_id_in_place_of_the_gate(data, model) -> None:
    asked = []

    def policy(ids):
        asked.extend(ids)
        return one_hot(torch.tensor([int(name[1:]) % N_EXPERTS for name in ids]), N_EXPERTS).weights

    found = decode(model, data, CONTEXT, DecodingOptions(), policy)
    assert sorted(asked) == [row["utterance_id"] for row in data.rows]
    assert [int(hypothesis.routing_weights.argmax()) for hypothesis in found] == [number % N_EXPERTS for number in range(6)]


def test_the_loss_is_the_training_loss_of_each_utterance(data, model) -> None:
    found = decode(model, data, FULL, DecodingOptions(decoding_batch_size=4), with_loss=True)
    for index, hypothesis in enumerate(found):
        batch = collator(data.processor, FULL)([data[index]])
        expected = model.eval()(batch["mel"], batch["n_frames"], batch["labels"])["loss"].item()
        assert hypothesis.utterance_loss == pytest.approx(expected, abs=1e-5)
    assert np.isnan(decode(model, data, FULL, DecodingOptions())[0].utterance_loss)


def test_a_cached_embedding_in_the_dataset_decides_the_routing(data, model) -> None:
    width = 2 * model.base.config.d_model
    data_with = dataset(_manifest(data), data.root, extras={"embedding": np.zeros((6, width), np.float32)})
    weights = [hypothesis.routing_weights for hypothesis in decode(model, data_with, CONTEXT, DecodingOptions())]
    assert all(np.array_equal(row, weights[0]) for row in weights)


def _manifest(data):
    import pandas as pd

    return pd.DataFrame(data.rows)


def test_without_experts_there_is_no_routing(data) -> None:
    found = decode(toy_mixture(n_experts=0), data, CONTEXT, DecodingOptions())
    assert all(hypothesis.routing_weights is None and isinstance(hypothesis.text, str) for hypothesis in found)


def test_hypotheses_are_bounded_by_the_audio_and_never_longer_than_the_decoder(data, model) -> None:
    n_positions = model.base.config.max_target_positions
    for rate in (0.1, 1e6):
        fed = decoder_inputs(model, lambda rate=rate: decode(model, data, CONTEXT, DecodingOptions(max_tokens_per_s=rate)))
        assert sum(tokens.shape[1] for tokens in fed) < n_positions
    longest = sum(tokens.shape[1] for tokens in fed)
    assert longest == n_positions - 1  # the random toy never ends by itself: all positions were used, the last token is not fed


def test_decoding_twice_is_the_same(data, model) -> None:
    first, second = (decode(model, data, CONTEXT, DecodingOptions(beam_size=2), with_loss=True) for _ in range(2))
    assert [(h.text, h.utterance_loss) for h in first] == [(h.text, h.utterance_loss) for h in second]


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
