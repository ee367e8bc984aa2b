"""Beams against all paths, the language model against counts by hand, and its weight chosen on dev."""

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.table import beam_fault, load_system
from moe.systems.wav2vec2_ctc import beams
from moe.systems.wav2vec2_ctc.asks import CTCAsk
from moe.systems.wav2vec2_ctc.beams import best_paths
from moe.systems.wav2vec2_ctc.decoding import collapse
from moe.systems.wav2vec2_ctc.language_model import EDGE, LanguageModel
from moe.systems.wav2vec2_ctc.language_model_choice import chosen
from moe.systems.wav2vec2_ctc.training import CTCTrainingOptions
from tests.toys.ctc import ctc_dataset, toy_ctc
from tests.toys.models import write_corpus

needs_extra = pytest.mark.skipif(beams.missing_extra() is not None, reason="flashlight-text is not installed")
TEXTS = [[3, 4], [3, 3, 4], [4]]


def model(order: int = 3, **changes) -> LanguageModel:
    return LanguageModel(**{**vars(LanguageModel.of(TEXTS, order, 5)), **changes})


def outputs(seed: int, n_outputs: int, n_tokens: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n_outputs, n_tokens, generator=generator)).log_softmax(-1)


def scores_of_texts(said: torch.Tensor, language_model: LanguageModel | None) -> dict[tuple[int, ...], float]:
    """The score of every text, over all paths."""
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(said.shape[1]), repeat=len(said)):
        text = tuple(token for token, _ in itertools.groupby(path) if token)
        totals[text] += math.exp(sum(float(said[place, token]) for place, token in enumerate(path)))
    found = {}
    for text, total in totals.items():
        cost = 0.0
        if language_model:
            known = (EDGE, *text)
            cost = sum(language_model.cost(known[: place + 1], token) for place, token in enumerate(text))
            cost += language_model.end_cost(known)
        found[text] = math.log(total) + cost
    return found


def text_of(said: torch.Tensor, path: torch.Tensor) -> tuple[int, ...]:
    return tuple(run.token for run in collapse(said, path))


@needs_extra
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("asked", [None, 2, 3])
def test_wide_beams_find_the_best_of_all_texts(seed: int, asked: int | None) -> None:
    said, language_model = outputs(seed, 4), asked and model(asked, weight=0.7, score=0.4)
    wanted = scores_of_texts(said, language_model or None)
    (path,) = best_paths([said], 2000, language_model or None)
    assert text_of(said, path) == max(wanted, key=wanted.__getitem__) and len(path) == len(said)


@needs_extra
def test_beams_find_what_no_single_path_shows() -> None:
    """Two paths of 0.24 each write 3, and one of 0.36 writes nothing."""
    said = torch.tensor([[0.6, 0, 0, 0.4, 0], [0.6, 0, 0, 0.4, 0]]).clamp_min(1e-9).log()
    (path,) = best_paths([said], 8, None)
    assert text_of(said, path) == (3,) and not collapse(said)


def test_probabilities_are_witten_and_bells() -> None:
    """By hand: after the start 3 twice and 4 once; every token alone 3 three times, 4 three times, the end three times."""
    bigrams = model(2)
    alone = (3 + 3 * (1 / 5)) / (9 + 3)
    assert bigrams.logprob((EDGE,), 3) == pytest.approx(math.log((2 + 2 * alone) / (3 + 2)))
    assert model(1).logprob((EDGE, 3), 4) == pytest.approx(math.log(alone))
    unseen = (0 + 3 * (1 / 5)) / 12
    assert bigrams.logprob((EDGE, 4), 2) == pytest.approx(math.log((0 + 1 * unseen) / (3 + 1)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_any_text(order: int) -> None:
    for context in [(EDGE,), (EDGE, 3), (EDGE, 3, 3), (EDGE, 2, 1, 4)]:
        assert sum(math.exp(model(order).logprob(context, token)) for token in range(5)) == pytest.approx(1)


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    model(3, weight=0.3, score=1.5).save(tmp_path / "lm.json")
    assert LanguageModel.load(tmp_path / "lm.json") == model(3, weight=0.3, score=1.5)


@needs_extra
def test_the_weight_with_the_fewest_errors_on_dev_is_taken_and_saved_with_the_model(tmp_path: Path) -> None:
    system = toy_ctc()
    data = ctc_dataset(system, write_corpus(tmp_path, (0.5, 0.7, 0.6)), tmp_path)
    language_model = LanguageModel.of([system.vocabulary.encode(text) for text in data.references], 3, len(system.vocabulary))
    best, table = chosen(system, data, language_model, "cer", None, None)
    assert len(table) == 9 and table["cer"].nunique() > 1
    row = table.loc[table["cer"].idxmin()]
    assert (best.weight, best.score) == (row["lm_weight"], row["lm_score"])
    given, table = chosen(system, data, language_model, "wer", 0.9, 0.1)
    assert (given.weight, given.score, len(table)) == (0.9, 0.1, 1)
    system.language_model = best
    system.save(tmp_path / "model")
    again = load_system(tmp_path / "model")
    wide = DecodingOptions(beam_size=8)
    texts = [[each.text for each in decode(one, data, wide)] for one in (system, again)]
    assert texts[0] == texts[1] != [each.text for each in decode(system, data, DecodingOptions())]
    assert again.language_model == best


@needs_extra
def test_beams_have_words_and_times_too(tmp_path: Path) -> None:
    system = toy_ctc()
    data = ctc_dataset(system, write_corpus(tmp_path, (0.5, 0.9)), tmp_path)
    for found in decode(system, data, DecodingOptions(beam_size=4)):
        words = found.details["words"]
        assert " ".join(word["word"] for word in words) == found.text
        assert all(word["start_s"] < word["end_s"] and 0 < word["confidence"] <= 1 for word in words)


def test_without_the_extra_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"beam_size=4: beams need flashlight-text: pip install -r requirements-beams.txt"):
        best_paths([outputs(0, 3)], 4, None)
    with pytest.raises(ValueError, match="beam_size=4: beams need flashlight-text"):
        toy_ctc().check(CTCAsk(), 4)
    toy_ctc().check(CTCAsk(), 1)
    assert (
        beam_fault("wav2vec2_ctc", 4)
        == "beam_size=4: wav2vec2_ctc: beams need flashlight-text: pip install -r requirements-beams.txt"
    )
    assert beam_fault("wav2vec2_ctc", 1) is None and beam_fault("zero_shot", 4) is None
    with pytest.raises(ValueError, match=r"ctc_lm_order=3: beams need flashlight-text"):
        CTCTrainingOptions(ctc_lm_order=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ctc_lm_order": 2}, "ctc_lm_order=2: must be one of 0, 3, 5"),
        ({"lm_weight": 0.5}, "lm_weight=0.5: ctc_lm_order=0 makes no language model"),
    ],
)
def test_language_models_that_help_nobody_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CTCTrainingOptions(**given)


def test_a_path_need_not_be_the_most_probable_one() -> None:
    said = outputs(1, 3)
    runs = collapse(said, torch.tensor([3, 0, 3]))
    assert [run.token for run in runs] == [3, 3] and np.isclose(runs[0].logprob, float(said[0, 3]))
