"""Our greedy search says what transformers' `generate` says, with the probabilities of a second pass."""

import pytest
import torch

from moe.routing.options import RoutingOptions
from moe.systems.whisper.greedy import is_plain
from moe.systems.whisper.tokens import prompt_ids
from moe.systems.whisper_moe.decoding import searched
from moe.systems.whisper_moe.token_scores import token_logprobs
from tests.toys.models import ALL_LINEARS, N_EXPERTS, adapter_options, tokenizer, toy_mixture

N_NEW = 14
KINDS = {
    "base": {"n_experts": 0},
    "deltas": {"n_experts": N_EXPERTS, "routing": RoutingOptions(top_k=2)},
    "losses": {"n_experts": N_EXPERTS, "routing": RoutingOptions(top_k=2, mixing="loss")},
}


@pytest.fixture(params=KINDS, scope="module")
def model(request):
    return toy_mixture(adapters=adapter_options(ALL_LINEARS), **KINDS[request.param]).eval()


@pytest.fixture
def encoded(model):
    mel = torch.randn(5, model.base.config.num_mel_bins, 60, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.encode(model.route(mel, torch.tensor([60, 50, 60, 40, 60])))


def said_by(model, encoded):
    """Tokens (B, N) of both searches, the rest of the shorter one filled with its end."""
    prompt, end = prompt_ids(tokenizer()), model.base.generation_config.eos_token_id
    ours = model.greedy(encoded, prompt, N_NEW)
    theirs = model.search(encoded, max_new_tokens=N_NEW)
    full = torch.full((len(theirs), N_NEW), end)
    filled = [torch.cat([tokens, full], 1)[:, :N_NEW] for tokens in (ours.tokens, theirs)]
    return ours, *filled


def test_the_tokens_are_those_of_transformers(model, encoded):
    _, ours, theirs = said_by(model, encoded)
    assert ours.tolist() == theirs.tolist() and len(set(map(tuple, ours.tolist()))) > 1


def test_rows_that_end_stay_ended_and_the_search_stops_with_the_last(model, encoded, monkeypatch):
    _, tokens, _ = said_by(model, encoded)
    for name in ("generation_config", "config"):  # a token that the toy says becomes the end of text
        monkeypatch.setattr(getattr(model.base, name), "eos_token_id", int(tokens[0, 3]))
    monkeypatch.setattr(model.base.generation_config, "pad_token_id", int(tokens[0, 3]))
    said, ours, theirs = said_by(model, encoded)
    assert ours.tolist() == theirs.tolist()
    assert set(ours[0, 3:].tolist()) == {int(tokens[0, 3])} and said.tokens.shape[1] <= N_NEW


def test_suppressed_tokens_are_never_said_and_those_of_the_beginning_not_there(model, encoded, monkeypatch):
    _, before, _ = said_by(model, encoded)
    monkeypatch.setattr(model.base.generation_config, "suppress_tokens", [int(before[0, 2])])
    monkeypatch.setattr(model.base.generation_config, "begin_suppress_tokens", [int(before[1, 0])])
    _, ours, theirs = said_by(model, encoded)
    assert ours.tolist() == theirs.tolist() != before.tolist()
    assert int(before[0, 2]) not in ours.flatten().tolist() and int(before[1, 0]) not in ours[:, 0].tolist()


def test_probabilities_are_those_of_a_second_pass(model, encoded):
    prompt = prompt_ids(tokenizer())
    said = model.greedy(encoded, prompt, N_NEW)
    rows = torch.cat([torch.tensor(prompt).expand(5, -1), said.tokens], 1)
    torch.testing.assert_close(said.logprobs, token_logprobs(model, encoded, rows)[:, len(prompt) - 1 :], atol=2e-5, rtol=1e-4)


def test_no_hypothesis_ends_before_the_least_number_of_tokens(model, encoded, monkeypatch):
    _, tokens, _ = said_by(model, encoded)
    monkeypatch.setattr(model.base.generation_config, "eos_token_id", int(tokens[0, 0]))
    said = model.greedy(encoded, prompt_ids(tokenizer()), N_NEW, min_new=6)
    assert int(tokens[0, 0]) not in said.tokens[:, :6].flatten().tolist()


def test_what_a_generation_config_asks_for_beyond_is_left_to_transformers(model, encoded, monkeypatch):
    assert is_plain(model.base.generation_config)
    monkeypatch.setattr(model.base.generation_config, "repetition_penalty", 1.5)
    assert not is_plain(model.base.generation_config)
    monkeypatch.setattr(model, "greedy", lambda *arguments: pytest.fail("greedy search knows no penalty"))
    tokens, means, counts = searched(model, tokenizer(), encoded, 1, 20)
    assert len(tokens) == len(means) == len(counts) == 5
