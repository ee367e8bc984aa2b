"""How a domain-token Whisper is trained: its tokens, its loss, how the domains are balanced, and the loop."""

import dataclasses

from moe.options import Options, option
from moe.recognition.dev_scores import RATES
from moe.systems.domain_whisper.prompts import END, PLACES, STARTS

DOMAIN_CER = "domain_cer"


@dataclasses.dataclass(frozen=True)
class TokenOptions(Options):
    """The tokens of the domains."""

    group = "domain"

    token_place: str = option(END, "place of the token: the prompt's end, or that of the no-timestamps token", choices=PLACES)
    token_init: str = option(
        "prompt",
        "row that a token begins with: of the prompt's last token, the mean of its name's words, or of all",
        choices=STARTS,
    )
    token_dropout: float = option(
        0.1, "share of the utterances that train without token, so that decoding without one works", low=0, high=1
    )
    domain_confidence: float = option(0.5, "domain=auto gives no token below this probability of the classifier", low=0, high=1)


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """The training loss."""

    group = "domain"

    label_smoothing: float = option(0.0, "share of the target that is spread over all tokens", low=0, high=0.9)
    domain_loss_weight: float = option(
        1.0, "weight of target domains in the loss, which is divided by the sum of weights", above=0
    )


@dataclasses.dataclass(frozen=True)
class BalanceOptions(Options):
    """How often the utterances of a domain come."""

    group = "domain"

    oversample: float = option(1.0, "times that an utterance of a target domain comes in an epoch", low=1)
    balance_domains: bool = option(False, "repeat the utterances of smaller domains until all are as large as the largest")

    def faults(self) -> list[str]:
        """Two ways to say it."""
        if self.balance_domains and self.oversample != 1:
            return [f"oversample={self.oversample:g} and balance_domains=true contradict each other: set one of them"]
        return []


@dataclasses.dataclass(frozen=True)
class DomainTrainingOptions(TokenOptions, LossOptions, BalanceOptions):
    """How a domain-token Whisper is trained."""

    group = "domain"

    domain_epochs: int = option(4, "passes over the training subset", low=1)
    domain_batch_size: int = option(16, "utterances per batch", low=1)
    domain_learning_rate: float | None = option(
        None,
        "learning rate of what trains beside the tokens' rows (none: 1e-3 for LoRA and above a base made from random weights, 1e-4 above any other)",
        above=0,
    )
    token_learning_rate: float = option(1e-3, "learning rate of the tokens' rows", above=0)
    selection: str = option(
        "cer", "error rate of dev by which the best epoch is kept; domain_cer: mean of the domains'", choices=(*RATES, DOMAIN_CER)
    )
    domain_patience: int = option(5, "validations without improvement of that rate after which training ends", low=1)
