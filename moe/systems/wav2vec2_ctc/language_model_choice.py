"""The weight and the score of a language model that make the fewest errors on dev; the test split is not asked."""

import dataclasses
import itertools

import pandas as pd
import torch

from moe.recognition.dev_scores import RATES
from moe.systems.wav2vec2_ctc.beams import best_paths
from moe.systems.wav2vec2_ctc.decoding import collapse
from moe.systems.wav2vec2_ctc.language_model import LanguageModel
from moe.systems.wav2vec2_ctc.system import CTCSystem
from moe.training.batches import collate, length_batches, to_device
from moe.training.dataset import SpeechDataset

WEIGHTS, SCORES = (0.2, 0.5, 1.0), (0.0, 0.5, 1.5)
BEAMS = 16
MOST = 100  # dev utterances that are searched, evenly taken: each is searched nine times
BATCH = 16


def chosen(
    system: CTCSystem,
    dev_set: SpeechDataset,
    language_model: LanguageModel,
    selection: str,
    weight: float | None,
    score: float | None,
) -> tuple[LanguageModel, pd.DataFrame]:
    """The model with the best weight and score, and the table they are chosen by: weight, score and the error rate.

    Args:
        weight, score: what is given is kept.
    """
    tried = list(itertools.product(WEIGHTS if weight is None else [weight], SCORES if score is None else [score]))
    models = [dataclasses.replace(language_model, weight=one, score=other) for one, other in tried]
    rows, references = _outputs(system, dev_set)
    rates = [RATES[selection](references, _texts(system, rows, each)) for each in models]
    table = pd.DataFrame(tried, columns=["lm_weight", "lm_score"]).assign(**{selection: rates})
    return models[rates.index(min(rates))], table


@torch.no_grad()
def _outputs(system: CTCSystem, dev_set: SpeechDataset) -> tuple[list[torch.Tensor], list[str]]:
    """Log-probabilities (T', V) and reference of the dev utterances that are searched."""
    step = max(1, -(-len(dev_set) // MOST))
    taken, device = set(range(0, len(dev_set), step)), next(system.module.parameters()).device
    rows, references = list[torch.Tensor](), list[str]()
    for batch in length_batches(dev_set, BATCH):
        indices = [index for index in batch.tolist() if index in taken]
        if indices:
            inputs = to_device(collate(dev_set, [dev_set[index] for index in indices]), device)
            said, _ = system.outputs(inputs, system.ask_type())
            n_outputs = system.module.frames.n_outputs(inputs["n_frames"]).tolist()
            rows += [row[:n].cpu() for row, n in zip(said, n_outputs, strict=True)]
            references += [dev_set.references[index] for index in indices]
    return rows, references


def _texts(system: CTCSystem, rows: list[torch.Tensor], language_model: LanguageModel) -> list[str]:
    paths = best_paths(rows, BEAMS, language_model)
    runs = [collapse(row, path) for row, path in zip(rows, paths, strict=True)]
    return [system.vocabulary.decode([run.token for run in each]) for each in runs]
