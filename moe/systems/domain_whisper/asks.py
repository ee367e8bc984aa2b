"""What may be asked of a domain-token Whisper."""

import dataclasses

from moe.options import Options, option

AUTO, CORPUS, NONE = "auto", "corpus", "none"
WORDS = (AUTO, CORPUS, NONE)


@dataclasses.dataclass(frozen=True)
class DomainAsk(Options):
    """What a request may ask of a domain-token Whisper."""

    domain: str = option(
        AUTO, "domain token: auto (a classifier says), corpus (evaluate: the manifest says), none, or a domain's name"
    )
    language: str | None = option(None, "language code (none: the one the model was trained for)")


def served(ask: DomainAsk) -> DomainAsk:
    """What is asked in serving, where evaluation asked this: no manifest says the domain there, so the classifier does."""
    return dataclasses.replace(ask, domain=AUTO) if ask.domain == CORPUS else ask


@dataclasses.dataclass(frozen=True)
class WrongDomain(DomainAsk):
    """An ablation: the token of the domain after the manifest's own."""
