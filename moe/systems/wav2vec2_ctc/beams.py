"""Prefix beam search over a CTC's outputs (Hannun et al. 2014, arXiv:1408.2873) by flashlight-text, an extra, with our language model.

flashlight begins every path with its token for silence and takes the first output for a repeat of it. Blank is given as that token, so
no text is lost; the scores then equal the sums over all paths.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.systems.wav2vec2_ctc.language_model import EDGE, Context, LanguageModel
from moe.systems.wav2vec2_ctc.vocabulary import BLANK

N_TOKENS = 16  # the most probable ones of each output, by which a path may go on
THRESHOLD = 15.0  # natural logarithm of what a path may be less probable than the best one


def missing_extra() -> str | None:
    """What to install for beams; None where it is there."""
    if importlib.util.find_spec("flashlight"):
        return None
    return "beams need flashlight-text: pip install -r requirements-beams.txt"


def check_beams(beam_size: int) -> None:
    """Refuse to search beams without the extra.

    Raises:
        ValueError: flashlight-text is not installed.
    """
    if beam_size > 1 and (missing := missing_extra()):
        raise ValueError(f"beam_size={beam_size}: {missing}")


def best_paths(rows: Sequence[Tensor], beam_size: int, language_model: LanguageModel | None) -> list[Tensor]:
    """The most probable way to write each utterance's best text: log-probabilities (T', V) each → tokens (T',) each.

    Raises:
        ValueError: flashlight-text is not installed.
    """
    check_beams(beam_size)
    return [_best_path(row, beam_size, language_model) for row in rows]


def _best_path(said: Tensor, beam_size: int, language_model: LanguageModel | None) -> Tensor:
    from flashlight.lib.text import decoder as flashlight

    emissions = np.ascontiguousarray(said.detach().float().cpu().numpy())  # (T', V)
    options = flashlight.LexiconFreeDecoderOptions(
        beam_size=beam_size,
        beam_size_token=min(N_TOKENS, emissions.shape[1]),
        beam_threshold=THRESHOLD,
        lm_weight=1.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=flashlight.CriterionType.CTC,
    )
    scorer = _scorer(language_model) if language_model else flashlight.ZeroLM()
    search = flashlight.LexiconFreeDecoder(options, scorer, BLANK, BLANK, [])
    best = search.decode(emissions.ctypes.data, *emissions.shape)[0]
    return torch.tensor(best.tokens[1:-1])  # without what begins and ends every path


def _scorer(language_model: LanguageModel) -> Any:
    """The language model as flashlight asks for one."""
    from flashlight.lib.text import decoder as flashlight

    class Scorer(flashlight.LM):  # type: ignore[misc]  # flashlight has no types
        def __init__(self) -> None:
            super().__init__()
            self.contexts: dict[Any, Context] = {}
            self.costs: dict[Any, float] = {}

        def start(self, start_with_nothing: bool) -> Any:
            state = flashlight.LMState()
            self.contexts[state] = (EDGE,)
            return state

        def score(self, state: Any, token: int) -> tuple[Any, float]:
            follower = state.child(token)
            if follower not in self.costs:
                context = self.contexts[state]
                self.costs[follower] = language_model.cost(context, token)
                self.contexts[follower] = (*context, token)[-language_model.order :]
            return follower, self.costs[follower]

        def finish(self, state: Any) -> tuple[Any, float]:
            return state, language_model.end_cost(self.contexts[state])

    return Scorer()
