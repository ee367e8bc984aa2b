"""Domain-token Whisper as a system: which token an utterance gets, and its text after that prompt."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moe.routing.gate import Gate, probabilities
from moe.system import Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record
from moe.systems.domain_whisper.asks import AUTO, CORPUS, NONE, WORDS, DomainAsk, WrongDomain
from moe.systems.domain_whisper.classifier import LAYER, POOLING
from moe.systems.domain_whisper.decoding import hypotheses_of
from moe.systems.domain_whisper.domains import NO_DOMAIN
from moe.systems.domain_whisper.folder import BASE_DIR, DomainShape, save
from moe.systems.domain_whisper.folder import load as load_parts
from moe.systems.domain_whisper.inputs import DOMAIN, DomainInputs
from moe.systems.domain_whisper.model import DomainWhisper
from moe.systems.domain_whisper.options import LossOptions, TokenOptions
from moe.systems.domain_whisper.prompts import Prompts, add_tokens, initial_rows, token_table
from moe.systems.domain_whisper.unfreezing import LORA, groups, lora_options, unfreeze
from moe.systems.whisper.base_model import BaseModel, use_language
from moe.systems.whisper.base_source import language_fault
from moe.systems.whisper.encoder import pooled_embedding
from moe.systems.whisper.tokens import language_ids
from moe.training.precision import computing

NAME, TITLE = "domain_whisper", "domain-token Whisper"


class DomainSystem:
    """The system; see `moe.system.System`.

    Args:
        base_dir: folder of the base model, for a LoRA to be saved beside.
        classifier: what `domain=auto` asks; None before training.
        rates: learning rates of blocks and of tokens; empty where nothing trains.
        token_dropout: share of the utterances that train without their token.
    """

    ask_type = DomainAsk

    def __init__(
        self,
        module: DomainWhisper,
        base: BaseModel,
        base_dir: Path,
        record: Record,
        classifier: Gate | None = None,
        rates: Sequence[float] = (),
        token_dropout: float = 0.0,
    ) -> None:
        use_language(base, record.language)
        self.module, self.base, self.base_dir, self.record = module, base, base_dir, record
        self.shape = DomainShape.of(record.shape)
        self.classifier, self.rates = classifier, tuple(rates)
        n_positions = base.model.config.max_target_positions
        self.inputs = DomainInputs(base.processor, self.shape.context, module.prompts, n_positions, token_dropout)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The tokens' rows at their rate, and what else trains at the blocks'."""
        if not self.rates:
            return []
        return groups(self.module.base, self.module.rows, self.shape.unfreezing, *self.rates)

    @torch.no_grad()
    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch; `details` hold the domain whose token was given, and the classifier's probability where it was asked."""
        ask = ask if isinstance(ask, DomainAsk) else DomainAsk()
        given, sure = self.domains_for(batch, ask)
        return hypotheses_of(self.module, self.inputs, batch, (given, sure), options, ask.language, with_loss)

    def domains_for(self, batch: Batch, ask: DomainAsk) -> tuple[Tensor, Tensor]:
        """Number of the domain whose token each utterance gets, (B,), and the probability that the classifier gives it, NaN unasked."""
        n, device, names = len(batch["mel"]), batch["mel"].device, self.shape.domains.names
        unasked = torch.full((n,), torch.nan)
        if not self.shape.conditioned:
            return torch.full((n,), NO_DOMAIN, device=device), unasked
        if isinstance(ask, WrongDomain) or ask.domain == CORPUS:
            own = batch.get(DOMAIN, torch.full((n,), NO_DOMAIN, device=device))
            return own.where(own < 0, (own + isinstance(ask, WrongDomain)) % len(names)), unasked
        if ask.domain == AUTO and self.classifier is not None:
            return self._classified(batch, self.classifier)
        number = self.shape.domains.number(ask.domain) if ask.domain in names else NO_DOMAIN
        return torch.full((n,), number, device=device), unasked

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Refuse what `refuse` does, and a language that the base has not.

        Raises:
            ValueError: naming what is known.
        """
        asked = ask.part(DomainAsk)
        refuse(self.record, asked, None)
        language = asked.language
        known = language_ids(self.base.model.generation_config)
        if language not in (None, self.record.language) and (fault := language_fault(language, known)):
            raise ValueError(fault)

    def ablations(self) -> dict[str, Ask]:
        """The manifest's token, another, and none; nothing where no token was trained."""
        if not self.shape.conditioned:
            return {}
        return {"right": DomainAsk(domain=CORPUS), "wrong": WrongDomain(), "no_token": DomainAsk(domain=NONE)}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """Share of the utterances that got a token, and the least distance between two rows by the length of a row."""
        given = [hypothesis.details[DOMAIN] != NONE for hypothesis in hypotheses]
        rows = self.module.rows.detach().float()
        apart = torch.pdist(rows).min() / rows.norm(dim=1).mean()
        return {"token_share": float(np.mean(given)), "row_distance": float(apart)}

    def from_manifest(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """The number of each utterance's domain, (N,)."""
        return {DOMAIN: self.shape.domains.numbers(rows["etiology"].tolist())}

    def describe(self) -> dict[str, str]:
        """Domains and how the token is chosen."""
        classified = f"a classifier's where it is at least {self.shape.confidence:g} sure, else none"
        return {
            "domains": ", ".join(self.shape.domains.names),
            "domain token": classified if self.shape.conditioned else "none: it was trained without",
        }

    def place(self, device: torch.device | str, precision: str) -> None:
        """Move the model to a device and compute there in a precision."""
        self.module.to(device).use_precision(precision)
        if self.classifier is not None:
            self.classifier.to(device)

    def save(self, folder: Path) -> None:
        """Base model with the trained rows, adapter, classifier and record."""
        save(folder, self.module, self.base, self.base_dir, self.classifier, self.record)

    def _classified(self, batch: Batch, classifier: Gate) -> tuple[Tensor, Tensor]:
        encoder = self.module.base.model.encoder
        with computing(self.module.device, self.module.precision):
            vectors = pooled_embedding(encoder, batch["mel"], batch["n_frames"], LAYER, POOLING)  # (B, D)
        sure, number = torch.from_numpy(probabilities(classifier, vectors.float().cpu().numpy())).max(-1)  # (B,)
        return number.where(sure >= self.shape.confidence, NO_DOMAIN).to(vectors.device), sure


def refuse(record: Record, ask: DomainAsk, rows: pd.DataFrame | None) -> None:
    """Refuse the token of a domain that a recogniser has not, and the manifest's where it says none; asked before anything is loaded.

    Raises:
        ValueError: naming those that it has.
    """
    shape = DomainShape.of(record.shape)
    domains = shape.domains
    if not shape.conditioned and ask.domain not in (AUTO, NONE):
        raise ValueError(
            f"domain={ask.domain}: the model was trained without tokens (token_dropout=1); it takes {AUTO} or {NONE}"
        )
    has = f"the model has {', '.join(domains.names)}; or {AUTO}, {NONE}"
    if ask.domain not in (*WORDS, *domains.names):
        raise ValueError(f"domain={ask.domain}: {has}")
    if ask.domain == CORPUS and rows is None:
        raise ValueError(f"domain={CORPUS}: no manifest says the domain here; {has}")
    if ask.domain == CORPUS and rows is not None and (domains.numbers(rows["etiology"].tolist()) == NO_DOMAIN).all():
        raise ValueError(f"domain={CORPUS}: no utterance of the corpus belongs to a domain; {has}")


def load(folder: Path) -> DomainSystem:
    """A saved one.

    Raises:
        ValueError: the folder holds no whole one.
    """
    module, base, classifier, record = load_parts(folder)
    return DomainSystem(module, base, Path(folder) / BASE_DIR, record, classifier)


def build(
    base: BaseModel,
    base_dir: Path,
    shape: DomainShape,
    language: str,
    normaliser: str,
    tokens: TokenOptions,
    losses: LossOptions,
    rates: Sequence[float],
) -> DomainSystem:
    """An untrained one; the start of its tokens is drawn from torch's generator."""
    use_language(base, language)
    names, unfreezing = shape.domains.names, shape.unfreezing
    first = add_tokens(base, names)
    with torch.no_grad():
        token_table(base.model).weight[first:] = initial_rows(base, names, tokens.token_init)
    unfreeze(base.model, unfreezing)
    adapters = lora_options(base.model, unfreezing) if unfreezing.unfreeze == LORA else None
    shape = dataclasses.replace(shape, adapters=adapters, conditioned=tokens.token_dropout < 1)
    prompts = Prompts(base.processor.tokenizer, names, shape.place)
    weights = [losses.domain_loss_weight if target else 1.0 for target in shape.domains.is_target]
    module = DomainWhisper(base.model, prompts, adapters, weights, losses.label_smoothing)
    record = Record(NAME, TITLE, "candidate", language, normaliser, shape=shape.plain())
    return DomainSystem(module, base, base_dir, record, None, rates, tokens.token_dropout)
