"""Any system judged by its hypotheses of the dev split, and its best epoch kept."""

import math
from collections.abc import Sequence

import numpy as np

from moe.recognition.decoding import decode
from moe.system import Ask, DecodingOptions, Hypothesis, System
from moe.text.error_rates import character_error_rate, word_error_rate
from moe.training.best_epoch import BestEpoch
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training

RATES = {"wer": word_error_rate, "cer": character_error_rate}


class BestOnDev(BestEpoch):
    """Decodes dev after an epoch: error rate, loss, and what the system measures of its own.

    What training began with is a candidate too: few data are soon learnt by heart.

    Args:
        selected: `wer` or `cer`.
        ask: what is asked in decoding; None for nothing.
    """

    def __init__(
        self,
        system: System,
        dev_set: SpeechDataset,
        training: Training,
        patience: int,
        selected: str = "wer",
        ask: Ask | None = None,
    ) -> None:
        super().__init__(system.module, training, selected, patience)
        self.system, self.dev_set, self.ask = system, dev_set, ask

    def judge_start(self) -> None:
        """Score the model as it came; once, also where training is interrupted."""
        if math.isinf(self.start_value):
            rates = self.rates(decode(self.system, self.dev_set, DecodingOptions(), self.ask))
            self.training.report(0, {f"dev/{name}_start": value for name, value in rates.items()})
            self.candidate(rates[self.selected])

    def epoch_begins(self, epoch: int) -> None:
        self.judge_start()

    def judge(self, epoch: int) -> dict[str, float]:
        hypotheses = decode(self.system, self.dev_set, DecodingOptions(), self.ask, with_loss=True)
        return self.scores(hypotheses) | self.system.measures(hypotheses)

    def scores(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """Error rates and the mean loss of the references."""
        return self.rates(hypotheses) | {"loss": float(np.mean([hypothesis.utterance_loss for hypothesis in hypotheses]))}

    def rates(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """Error rates of dev, the selected one among them."""
        return {name: self.rate(name, hypotheses) for name in dict.fromkeys([*RATES, self.selected])}

    def rate(self, name: str, hypotheses: Sequence[Hypothesis]) -> float:
        """An error rate of dev."""
        return RATES[name](self.dev_set.references, [hypothesis.text for hypothesis in hypotheses])
