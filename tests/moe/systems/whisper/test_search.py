"""Our search, greedy and by beams, says what transformers' `generate` says, with the probabilities of a second pass."""

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from moe.routing.options import RoutingOptions
from moe.systems.whisper.beams import beams
from moe.systems.whisper.next_token import NextToken, is_plain
from moe.systems.whisper.said import Said
from moe.systems.whisper.tokens import prompt_ids
from moe.systems.whisper_moe import decoding
from moe.systems.whisper_moe.decoding import searched
from moe.systems.whisper_moe.token_scores import token_logprobs
from tests.toys.models import ALL_LINEARS, N_EXPERTS, adapter_options, tokenizer, toy_mixture

N_NEW, N_ROWS = 14, 5
KINDS = {
    "base": {"n_experts": 0},
    "deltas": {"n_experts": N_EXPERTS, "routing": RoutingOptions(top_k=2)},
    "losses": {"n_experts": N_EXPERTS, "routing": RoutingOptions(top_k=2, mixing="loss")},
}
BEAMS = pytest.mark.parametrize("n_beams", [1, 2, 3, 5])
RULES = {
    "shorter ones": {"length_penalty": -1.0},
    "sums": {"length_penalty": 0.0},
    "as soon as there are enough": {"length_penalty": 0.6, "early_stopping": True},
    "until nothing can be better": {"length_penalty": 2.0, "early_stopping": "never"},
}


@pytest.fixture(params=KINDS, scope="module")
def model(request):
    return ending(toy_mixture(adapters=adapter_options(ALL_LINEARS), **KINDS[request.param]))


@pytest.fixture
def encoded(model):
    return encoded_by(model)


def ending(model):
    """A toy that ends by itself: the later a position, the likelier."""
    decoder = model.base.model.decoder
    end, positions = (
        decoder.embed_tokens.weight.data[model.base.generation_config.eos_token_id],
        decoder.embed_positions.weight.data,
    )
    positions += 1.3 * torch.arange(float(len(positions)))[:, None] * end / end.norm()
    return model


def encoded_by(model, seed=3):
    """An encoded batch of utterances of different lengths."""
    mel = torch.randn(N_ROWS, model.base.config.num_mel_bins, 60, generator=torch.Generator().manual_seed(seed))
    for row, n_frames in enumerate((60, 50, 60, 40, 20)):
        mel[row, :, n_frames:] = -1.0
    with torch.no_grad():
        return model.encode(model.route(mel, torch.tensor([60, 50, 60, 40, 20])))


def said_by(model, encoded, n_beams):
    """What we say, and the tokens (B, N) of both searches, the rest of the shorter one filled with its end."""
    prompt, end = prompt_ids(tokenizer()), model.base.generation_config.eos_token_id
    ours = model.say(encoded, prompt, N_NEW, n_beams)
    theirs = model.search(encoded, max_new_tokens=N_NEW, num_beams=n_beams)
    full = torch.full((len(theirs), N_NEW), end)
    filled = [torch.cat([tokens, full], 1)[:, :N_NEW] for tokens in (ours.tokens, theirs)]
    return ours, *filled


@BEAMS
def test_the_tokens_are_those_of_transformers(model, encoded, n_beams):
    _, ours, theirs = said_by(model, encoded, n_beams)
    assert ours.tolist() == theirs.tolist() and len(set(map(tuple, ours.tolist()))) > 1


@BEAMS
def test_so_they_are_of_models_drawn_at_random_and_hypotheses_end_at_different_times(n_beams):
    n_said = set()
    for seed in range(6):
        model, generator = toy_mixture(n_experts=0), torch.Generator().manual_seed(seed)
        for name, parameter in model.base.named_parameters():
            if parameter.dim() > 1 and "encoder.embed_positions" not in name:
                torch.nn.init.normal_(parameter.data, std=0.8 if "embed_positions" in name else 0.25, generator=generator)
        _, ours, theirs = said_by(model, encoded_by(ending(model), seed), n_beams)
        assert ours.tolist() == theirs.tolist()
        n_said |= set((ours != model.base.generation_config.eos_token_id).sum(1).tolist())
    assert {0, N_NEW} < n_said


@pytest.mark.parametrize("n_beams", [3, 8, 20])
def test_a_vocabulary_may_be_smaller_than_the_hypotheses_that_are_looked_at(n_beams):
    torch.manual_seed(5)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"eos_token_id": 7, "bos_token_id": 7, "pad_token_id": 7, "decoder_start_token_id": 8}
    none = {"suppress_tokens": None, "begin_suppress_tokens": None}
    config = WhisperConfig(vocab_size=9, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=20, **sizes, **ids, **none)
    base, states = WhisperForConditionalGeneration(config).eval(), torch.randn(2, 6, 16)
    with torch.no_grad():
        base.model.decoder.embed_tokens.weight.mul_(30.0)
    ours = beams(NextToken(base, states, [8], 6), n_beams).tokens
    given = {"decoder_input_ids": torch.tensor([[8], [8]]), "max_new_tokens": 6, "num_beams": n_beams}
    theirs = base.generate(encoder_outputs=BaseModelOutput(states), **given)[:, -ours.shape[1] :]
    assert ours.tolist() == theirs.tolist()


@BEAMS
def test_rows_that_end_stay_ended_and_the_search_stops_with_the_last(model, encoded, n_beams):
    said, ours, _ = said_by(model, encoded, n_beams)
    ended = ours == model.base.generation_config.eos_token_id
    assert torch.equal(ended, ended.cummax(1).values)
    assert said.tokens.shape[1] == int((~ended).sum(1).max()) + 1 < N_NEW


@pytest.mark.parametrize("rules", RULES)
def test_length_penalty_and_early_stopping_are_those_of_transformers(model, encoded, rules, monkeypatch):
    for key, value in RULES[rules].items():
        monkeypatch.setattr(model.base.generation_config, key, value)
    _, ours, theirs = said_by(model, encoded, 3)
    assert ours.tolist() == theirs.tolist() and is_plain(model.base.generation_config)


@BEAMS
def test_suppressed_tokens_are_never_said_and_those_of_the_beginning_not_there(model, encoded, n_beams, monkeypatch):
    _, before, _ = said_by(model, encoded, n_beams)
    monkeypatch.setattr(model.base.generation_config, "suppress_tokens", [int(before[0, 2])])
    monkeypatch.setattr(model.base.generation_config, "begin_suppress_tokens", [int(before[1, 0])])
    _, ours, theirs = said_by(model, encoded, n_beams)
    assert ours.tolist() == theirs.tolist() != before.tolist()
    assert int(before[0, 2]) not in ours.flatten().tolist() and int(before[1, 0]) not in ours[:, 0].tolist()


@BEAMS
def test_probabilities_are_those_of_a_second_pass(model, encoded, n_beams, monkeypatch):
    """Also where something is suppressed: that is left out of the choice, not of the probabilities."""
    prompt = prompt_ids(tokenizer())
    monkeypatch.setattr(model.base.generation_config, "suppress_tokens", [model.say(encoded, prompt, 1).tokens[0, 0].item()])
    said = model.say(encoded, prompt, N_NEW, n_beams)
    rows = torch.cat([torch.tensor(prompt).expand(N_ROWS, -1), said.tokens], 1)
    second = Said(said.tokens, token_logprobs(model, encoded, rows)[:, len(prompt) - 1 :])
    (means, counts), (expected, _) = (each.means(model.base.generation_config.eos_token_id) for each in (said, second))
    assert means == pytest.approx(expected, abs=1e-4)
    for row, n in enumerate(counts):
        torch.testing.assert_close(said.logprobs[row, :n], second.logprobs[row, :n], atol=2e-5, rtol=1e-4)


def test_more_beams_find_what_is_likelier(model, encoded):
    """By the mean of a hypothesis's tokens, over the batch: a single utterance may lose what it had."""
    prompt, end = prompt_ids(tokenizer()), model.base.generation_config.eos_token_id
    greedy, beams = (sum(model.say(encoded, prompt, N_NEW, n).means(end)[0]) for n in (1, 8))
    assert beams > greedy


@BEAMS
def test_no_hypothesis_ends_before_the_least_number_of_tokens(model, encoded, n_beams, monkeypatch):
    _, tokens, _ = said_by(model, encoded, n_beams)
    monkeypatch.setattr(model.base.generation_config, "eos_token_id", int(tokens[0, 0]))
    said = model.say(encoded, prompt_ids(tokenizer()), N_NEW, n_beams, min_new=6)
    assert int(tokens[0, 0]) not in said.tokens[:, :6].flatten().tolist()


@BEAMS
def test_an_utterance_is_said_alike_alone_and_in_company(model, encoded, n_beams):
    """Rows that are done wait for the others, and change no more."""
    prompt = prompt_ids(tokenizer())
    together = model.say(encoded, prompt, N_NEW, n_beams)
    for row in range(N_ROWS):
        (alone,) = model.say(encoded.rows(slice(row, row + 1)), prompt, N_NEW, n_beams).tokens.tolist()
        assert together.tokens[row, : len(alone)].tolist() == alone


@torch.no_grad()
def test_the_audio_and_the_prompt_are_read_once_for_all_beams(model, encoded):
    layer, n_rows = model.base.model.decoder.layers[0], []
    with (
        layer.encoder_attn.k_proj.register_forward_pre_hook(lambda module, given: n_rows.append(tuple(given[0].shape[:2]))),
        model.base.model.decoder.embed_tokens.register_forward_pre_hook(
            lambda module, given: n_rows.append(tuple(given[0].shape))
        ),
    ):
        model.say(encoded, prompt_ids(tokenizer()), 3, n_beams=4)
    n, prompt = len(encoded.states), len(prompt_ids(tokenizer()))
    assert n_rows == [(n, encoded.states.shape[1]), (n, prompt), (4 * n, 1), (4 * n, 1)]


@torch.no_grad()
def test_every_utterance_may_have_a_prompt_of_its_own(model, encoded):
    prompt = torch.tensor(prompt_ids(tokenizer()))
    others = prompt.clone()
    others[-1] = 7
    values = None if encoded.values is None else encoded.values.log()
    with model.experts(encoded.weights):
        (mixed, _), *alone = (
            NextToken(model.base, encoded.states, each, 4, log_values=values)()
            for each in (torch.stack([prompt, others, prompt, others, prompt]), prompt, others)
        )
    expected = torch.stack([alone[row % 2][0][row] for row in range(N_ROWS)])
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)


@BEAMS
def test_what_a_generation_config_asks_for_beyond_is_left_to_transformers(model, encoded, n_beams, monkeypatch):
    assert is_plain(model.base.generation_config)
    ours = searched(model, tokenizer(), encoded, n_beams, 18)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "is_plain", lambda generation: False)
        tokens, means, counts = searched(model, tokenizer(), encoded, n_beams, 18)
    assert ours[0].tolist() == tokens.tolist() and ours[1] == pytest.approx(means, abs=1e-4) and ours[2] == counts
    monkeypatch.setattr(model.base.generation_config, "repetition_penalty", 1.5)
    assert not is_plain(model.base.generation_config)
    monkeypatch.setattr(model, "say", lambda *arguments: pytest.fail("our search knows no penalty"))
    tokens, means, counts = searched(model, tokenizer(), encoded, n_beams, 20)
    assert len(tokens) == len(means) == len(counts) == N_ROWS
