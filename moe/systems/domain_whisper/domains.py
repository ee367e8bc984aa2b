"""The domains that a corpus is divided into: which they are, and to which one an utterance belongs."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from moe.corpora.manifest import UNKNOWN
from moe.options import Options, listed, option

TWO, EACH = "two", "each"
NORMAL, ATYPICAL = "normal", "atypical"
NO_DOMAIN = -1  # number of the domain of an utterance that belongs to none
NAME = re.compile(r"[a-z0-9_-]+")
MOST_UNKNOWN = 0.5


@dataclasses.dataclass(frozen=True)
class DomainOptions(Options):
    """What the domains are."""

    group = "domain"

    domains: str = option(TWO, "two (normal, atypical), each (one per etiology), or a comma list of the corpus's own")
    normal_etiologies: str = option("typical,normal", "etiologies of normal speech; every other is a target domain")

    @property
    def named(self) -> tuple[str, ...]:
        """The domains that the options name; none of `each`, which the corpus names."""
        return (NORMAL, ATYPICAL) if self.domains == TWO else () if self.domains == EACH else tuple(listed(self.domains))

    def faults(self) -> list[str]:
        """Names that are no names, one twice, and one alone."""
        if self.domains in (TWO, EACH):
            return []
        names = listed(self.domains)
        found = [f"domains={self.domains}: {name} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        found += name_faults("domains", names)
        if len(set(names)) < 2:
            found.append(f"domains={self.domains}: one domain leaves nothing to condition on; name two, or {TWO} or {EACH}")
        return found


@dataclasses.dataclass(frozen=True)
class Domains:
    """Domains by number.

    Attributes:
        names: of the domains, in the order of their tokens.
        normal: etiologies of normal speech.
        kind: `two`, where every etiology that is not normal is atypical; else each domain is an etiology.
    """

    names: tuple[str, ...]
    normal: tuple[str, ...]
    kind: str = EACH

    def of(self, etiology: str) -> str | None:
        """The domain of an etiology; None where it belongs to none."""
        if self.kind == TWO and etiology and etiology != UNKNOWN:
            return NORMAL if etiology in self.normal else ATYPICAL
        return etiology if etiology in self.names else None

    def number(self, name: str | None) -> int:
        """The number of a domain, or `NO_DOMAIN`."""
        return NO_DOMAIN if name is None else self.names.index(name)

    def numbers(self, etiologies: Sequence[str]) -> np.ndarray:
        """Numbers of the domains of utterances, (N,) int64; `NO_DOMAIN` where the etiology is in none."""
        return np.array([self.number(self.of(str(etiology))) for etiology in etiologies], np.int64)

    @property
    def is_target(self) -> tuple[bool, ...]:
        """Whether each domain is one of atypical speech."""
        return tuple(name not in (NORMAL, *self.normal) for name in self.names)


def domains_of(options: DomainOptions, etiologies: pd.Series) -> Domains:
    """The domains of a corpus, by the etiologies (N,) of its train split.

    Raises:
        ValueError: everything that is wrong with them.
    """
    normal, known = tuple(listed(options.normal_etiologies)), sorted(set(etiologies) - {UNKNOWN, ""})
    if options.domains == TWO:
        domains = Domains(options.named, normal, TWO)
    else:
        domains = Domains(options.named or tuple(known), normal)
    if faults := _corpus_faults(options, domains, known, domains.numbers(etiologies)):
        raise ValueError("; ".join(faults))
    return domains


def _corpus_faults(options: DomainOptions, domains: Domains, known: list[str], numbers: np.ndarray) -> list[str]:
    asked, has = f"domains={options.domains}", ", ".join(known) or "none"
    found = name_faults(asked, domains.names)
    empty = [name for number, name in enumerate(domains.names) if not (numbers == number).any()]
    if len(domains.names) - len(empty) < 2:
        found.append(
            f"{asked}: the train split has one domain only, which leaves nothing to condition on; its etiologies are {has}"
        )
    elif empty:
        found.append(f"{asked}: {', '.join(empty)} is not in the train split, whose etiologies are {has}")
    share = float((numbers == NO_DOMAIN).mean())
    if share > MOST_UNKNOWN:
        found.append(
            f"{asked}: {100 * share:.0f} % of the train split belong to none of {', '.join(domains.names)}; at most half may"
        )
    return found


def name_faults(what: str, names: Sequence[str]) -> list[str]:
    """Names that a token cannot have."""
    bad = [name for name in names if not NAME.fullmatch(name)]
    return [f"{what}: {', '.join(map(repr, bad))} must be of a-z, 0-9, _ and -"] if bad else []
