"""One prompt everywhere: in training, decoding, log-probabilities and serving; and tokens that are a condition, never a text."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moe.recognition.decoding import decode
from moe.recognition.recognizer import Recognizer
from moe.system import IGNORED, DecodingOptions
from moe.systems.domain_whisper import decoding
from moe.systems.domain_whisper.asks import DomainAsk
from moe.systems.domain_whisper.options import TokenOptions
from moe.systems.domain_whisper.prompts import Prompts, add_tokens, initial_rows, token_faults, token_table
from moe.systems.domain_whisper.system import DomainSystem
from moe.systems.whisper import step_decoder
from moe.systems.whisper.base_model import BaseModel, use_language
from moe.systems.whisper.said import Said
from moe.systems.whisper.tokens import NO_TIMESTAMPS, START, prompt_ids, text_ids, token_ids
from moe.training.batches import collate
from moe.training.dataset import SpeechDataset, refused
from tests.toys.domain import toy_domain
from tests.toys.models import RATE, shared_base, toy_base, toy_wave, write_corpus

GREEDY = DecodingOptions(max_tokens_per_s=3.0)
PLACES = ("end", "no_timestamps")


@pytest.fixture(scope="module", params=PLACES)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DomainSystem:
    return toy_domain(tmp_path_factory.mktemp("base"), tokens=TokenOptions(token_place=request.param))


def own_base() -> BaseModel:
    """A copy whose vocabulary may be changed too."""
    base = toy_base()
    return BaseModel(base.model, copy.deepcopy(base.processor))


def data_of(system: DomainSystem, folder: Path) -> SpeechDataset:
    rows = write_corpus(folder)
    return SpeechDataset(rows, folder, system.inputs, extras=system.from_manifest(rows))


@contextmanager
def reading(system: DomainSystem) -> Iterator[list[list[int]]]:
    """Every row of token ids that the decoder reads inside the block."""
    rows: list[list[int]] = []
    with token_table(system.module.base).register_forward_pre_hook(lambda module, given: rows.extend(given[0].tolist())):
        yield rows


def test_the_prompt_is_start_language_task_no_timestamps_domain() -> None:
    base = use_language(own_base(), "en")
    tokenizer = base.processor.tokenizer
    add_tokens(base, ("als", "typical"))
    plain = token_ids(tokenizer, START, "<|en|>", "<|transcribe|>", NO_TIMESTAMPS)
    als = token_ids(tokenizer, "<|domain:als|>")
    at_the_end, in_place = (Prompts(tokenizer, ("als", "typical"), place) for place in PLACES)
    assert at_the_end.of(0) == [*plain, *als] and in_place.of(0) == [*plain[:-1], *als]
    assert at_the_end.of(-1) == in_place.of(-1) == plain == prompt_ids(tokenizer)


def test_training_decoding_log_probabilities_and_serving_read_the_same_prompt(system: DomainSystem, tmp_path: Path) -> None:
    data = data_of(system, tmp_path)
    prompt = tuple(system.module.prompts.of(0))
    batch = collate(data, [data[0]])  # of als
    ways = {
        "training": lambda: system.module(**batch),
        "decoding and log-probabilities": lambda: system.decode(batch, GREEDY, DomainAsk(domain="corpus"), with_loss=True),
        "beams": lambda: system.decode(batch, DecodingOptions(beam_size=2, max_tokens_per_s=3.0), DomainAsk(domain="als")),
        "serving": lambda: Recognizer(system).transcribe([toy_wave(0, 0.5)], GREEDY, DomainAsk(domain="als")),
    }
    for name, way in ways.items():
        with reading(system) as rows:
            way()
        assert {tuple(row[: len(prompt)]) for row in rows if len(row) >= len(prompt)} == {prompt}, name


def test_the_prompt_is_not_scored(system: DomainSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = data_of(system, tmp_path), []
    loss = "moe.systems.domain_whisper.model.head_cross_entropy"
    monkeypatch.setattr(loss, lambda said, head, labels, smoothing: seen.append((labels, len(head))) or labels.sum(1).float())
    system.module.decoder_loss(torch.zeros(1, 4, 32), collate(data, [data[0]])["labels"], torch.tensor([0]))
    (labels, n_tokens), text = seen[0], text_ids(system.inputs.processor.tokenizer, data.references[0])
    n_prompt = len(system.module.prompts.of(0))
    assert labels[0].tolist() == [IGNORED] * (n_prompt - 1) + text and n_tokens == system.module.n_old


def test_switching_the_token_changes_the_loss_at_once(system: DomainSystem, tmp_path: Path) -> None:
    data = data_of(system, tmp_path)
    batch, module = collate(data, [data[0]]), system.module
    states = module.encode(batch["mel"])
    losses = [module.decoder_loss(states, batch["labels"], torch.tensor([number])).item() for number in (-1, 0, 1)]
    assert len({round(loss, 3) for loss in losses}) == 3


def test_log_probabilities_are_those_of_transformers_own_forward(system: DomainSystem, tmp_path: Path) -> None:
    data = data_of(system, tmp_path)
    batch, module = collate(data, [data[0]]), system.module
    states, prompt = module.encode(batch["mel"]), torch.tensor([module.prompts.of(1)])
    tokens = torch.tensor([[7, 8, 9]])
    found = module.token_logprobs(states, prompt, tokens)
    with torch.no_grad():
        token_table(module.base).weight[module.n_old :] = module.rows
    logits = module.base(encoder_outputs=(states,), decoder_input_ids=torch.cat([prompt, tokens[:, :-1]], 1)).logits
    wanted = logits[:, prompt.shape[1] - 1 :, : module.n_old].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("n_beams", [1, 2, 3, 5])
def test_our_search_says_what_transformers_does_of_a_head_without_new_tokens(
    system: DomainSystem, tmp_path: Path, n_beams: int
) -> None:
    """Prompts that differ by domain in one batch; the probabilities are those of a second pass."""
    module, end = system.module, system.inputs.processor.tokenizer.eos_token_id
    data = data_of(system, tmp_path)
    states, prompts = (
        module.encode(collate(data, [data[row] for row in (0, 2, 4)])["mel"]),
        torch.tensor([module.prompts.of(row % 2) for row in range(3)]),
    )

    def without_new(head: nn.Module, given: tuple[Tensor], logits: Tensor) -> Tensor:
        return torch.cat([logits[..., : module.n_old], torch.full_like(logits[..., module.n_old :], -torch.inf)], -1)

    said = module.say(states, prompts, 12, n_beams)
    with module.base.proj_out.register_forward_hook(without_new):
        theirs = module.search(states, prompts, prompts.shape[1] + 12, n_beams)
    rows = [torch.nn.functional.pad(tokens, (0, 12), value=end)[:, :12].tolist() for tokens in (said.tokens, theirs)]
    assert rows[0] == rows[1] and len({tuple(row) for row in rows[0]}) > 1
    second = Said(said.tokens, module.token_logprobs(states, prompts, said.tokens))
    assert said.means(end)[0] == pytest.approx(second.means(end)[0], abs=1e-4)


@pytest.mark.parametrize("n_beams", [1, 3])
def test_scores_are_read_in_the_search_and_by_a_second_pass_only_after_transformers_own(
    system: DomainSystem, tmp_path: Path, n_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, options, found = data_of(system, tmp_path), DecodingOptions(beam_size=n_beams, max_tokens_per_s=3.0), {}
    data.extras["domain"] = torch.tensor([0, -1, 1, 0, -1, 1])
    score, generation = system.module.token_logprobs, system.module.base.generation_config
    for plain in (True, False):
        n_passes: list[int] = []
        monkeypatch.setattr(decoding, "is_plain", lambda config, plain=plain: plain)
        monkeypatch.setattr(
            system.module, "token_logprobs", lambda *given, n_passes=n_passes: (n_passes.append(1), score(*given))[1]
        )
        found[plain] = [
            (each.text, each.n_tokens, each.mean_logprob) for each in decode(system, data, options, DomainAsk(domain="corpus"))
        ]
        assert bool(n_passes) is not plain
    if n_beams == 1:  # transformers' beams count the new tokens' probabilities in
        assert [each[:2] for each in found[True]] == [each[:2] for each in found[False]]
        assert [each[2] for each in found[True]] == pytest.approx([each[2] for each in found[False]], abs=1e-4)
    monkeypatch.undo()
    assert decoding.is_plain(generation)


def test_a_base_that_has_the_tokens_already_is_refused_by_name() -> None:
    base = own_base()
    assert token_faults(base.processor.tokenizer, ("als", "typical")) == []
    add_tokens(base, ("als",))
    (fault,) = token_faults(base.processor.tokenizer, ("als", "typical"))
    assert "the base has the tokens <|domain:als|> already" in fault


def test_rows_that_no_token_names_are_left_alone_and_new_ids_lie_above_them() -> None:
    """A table may be longer than its vocabulary: a new token must not take the row of another."""
    base = own_base()
    n_tokens = len(base.processor.tokenizer)
    base.model.resize_token_embeddings(n_tokens + 3, mean_resizing=False)
    before = token_table(base.model).weight.detach().clone()
    first = add_tokens(base, ("als", "typical"))
    assert first == n_tokens + 3 and token_ids(base.processor.tokenizer, "<|domain:als|>", "<|domain:typical|>") == [
        first,
        first + 1,
    ]
    assert torch.equal(token_table(base.model).weight[: n_tokens + 3], before)


@pytest.mark.parametrize("start", ["prompt", "words", "mean"])
def test_a_token_begins_near_what_is_asked_and_no_two_are_equal(start: str) -> None:
    base = own_base()
    table, tokenizer = token_table(base.model).weight.detach(), base.processor.tokenizer
    wanted = {
        "prompt": table[prompt_ids(tokenizer)[-1]],
        "words": table[tokenizer(" als", add_special_tokens=False).input_ids].mean(0),
        "mean": table.mean(0),
    }[start]
    rows = initial_rows(base, ("als", "typical"), start)
    assert float((rows[0] - wanted).norm()) < 0.05 * float(table.std() * len(wanted) ** 0.5) and not torch.equal(*rows)


@pytest.mark.parametrize("way", ["ours", "transformers"])
@pytest.mark.parametrize("return_timestamps", [False, True])
def test_a_decoder_that_says_new_tokens_in_a_row_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, return_timestamps: bool, way: str
) -> None:
    """Stack pitfall: the new ids lie above the timestamps; two in a row, and `generate` dropped the text after them and began again
    without the domain. As in v2's vocabulary, timestamps lie between the no-timestamps token and the new ones."""
    system = toy_domain(tmp_path, n_timestamps=5)
    module, tokenizer = system.module, system.inputs.processor.tokenizer
    first, last = token_ids(tokenizer, "<|0.00|>", "<|0.08|>")
    assert first == token_ids(tokenizer, NO_TIMESTAMPS)[0] + 1 and module.n_old == last + 1
    oak, elm = tokenizer(" oak", add_special_tokens=False).input_ids, tokenizer(" elm", add_special_tokens=False).input_ids
    script, n_prompt, passes = [*oak, module.n_old, module.n_old, *elm, tokenizer.eos_token_id], len(module.prompts.of(0)), []

    def logits(states: Tensor) -> Tensor:
        """The script's next token, most likely; where that is a new one, the text goes on."""
        scores = torch.zeros(*states.shape[:-1], module.n_old + 2)
        texts = [token for token in script if token < module.n_old]
        at = len(passes)
        passes.append(states.shape[1] if way == "transformers" else n_prompt if not passes else 1)  # ours asks for the last alone
        scores[..., texts[min(at, len(texts) - 1)]] = 5.0
        scores[..., script[min(at, len(script) - 1)]] += 9.0
        return scores

    module.base.generation_config.return_timestamps = return_timestamps
    module.base.generation_config.no_timestamps_token_id = token_ids(tokenizer, NO_TIMESTAMPS)[0]
    monkeypatch.setattr(module.base.proj_out, "forward", logits)
    monkeypatch.setattr(step_decoder, "packed", lambda linear: linear)
    states, prompts = torch.zeros(1, 4, 32), torch.tensor([module.prompts.of(0)])
    tokens = module.say(states, prompts, 12).tokens if way == "ours" else module.search(states, prompts, n_prompt + 12)
    assert (tokens < module.n_old).all() and passes[0] == n_prompt and set(passes[1:]) == {1}, "one pass, from the whole prompt"
    said = tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert "oak" in said and "elm" in said


def test_a_longer_reference_is_refused_by_what_the_prompt_leaves(system: DomainSystem) -> None:
    longest, text = system.inputs.max_labels, "oak"
    while len(text_ids(system.inputs.processor.tokenizer, text)) + system.module.prompts.longest() - 1 <= longest:
        assert system.inputs.refusal(RATE, text) is None
        text += " oak"
    assert "prompt included" in (system.inputs.refusal(RATE, text) or "")


def test_audio_longer_than_the_window_is_left_out_by_name_and_never_cut(system: DomainSystem, tmp_path: Path) -> None:
    """The original cut the audio and kept the text."""
    rows = write_corpus(tmp_path)
    longer = rows.assign(duration_s=[system.inputs.window_s + 0.1, *rows["duration_s"][1:]])
    left_out = refused(longer, system.inputs)
    assert left_out["utterance_id"].tolist() == [rows["utterance_id"][0]] and "longer than the window" in left_out["reason"][0]
    assert not len(refused(rows, system.inputs))


def test_what_is_decoded_in_company_is_what_is_decoded_alone_whatever_the_tokens(system: DomainSystem, tmp_path: Path) -> None:
    """Prompts with and without a token differ in length, so a batch is searched in parts."""
    data = data_of(system, tmp_path)
    data.extras["domain"] = torch.tensor([0, -1, 1, 0, -1, 1])
    ask = DomainAsk(domain="corpus")
    together = [each.text for each in decode(system, data, GREEDY, ask)]
    alone = [each.text for index in range(len(data)) for each in system.decode(collate(data, [data[index]]), GREEDY, ask)]
    assert together == alone and [each.details["domain"] for each in decode(system, data, GREEDY, ask)][:2] == ["als", "none"]


def test_the_base_that_tests_share_is_untouched() -> None:
    assert "<|domain:als|>" not in shared_base().processor.tokenizer.get_vocab()
