"""Entry point `domain`: a Whisper whose decoder is given the domain of an utterance as a token; writes the artifact `model`.

Reads a `prepare` and a `pretrain` run. Example:
    mlflow run . --env-manager local -e domain -P prepare_run_id=ID -P pretrain_run_id=ID -P domains=each
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import WhisperConfig, WhisperTokenizer

from analysis.report import markdown_table, percent
from moe.audio.augmentation import AugmentationOptions
from moe.options import names_of, option
from moe.systems.domain_whisper.domains import NO_DOMAIN, TWO, DomainOptions, Domains, domains_of
from moe.systems.domain_whisper.folder import DomainShape
from moe.systems.domain_whisper.options import BalanceOptions, DomainTrainingOptions, LossOptions, TokenOptions
from moe.systems.domain_whisper.prompts import token_faults
from moe.systems.domain_whisper.system import DomainSystem, build
from moe.systems.domain_whisper.training import TrainedDomains, balanced, row_similarities, token_share, train
from moe.systems.domain_whisper.unfreezing import ROWS_ALONE, UnfreezeOptions, describe, usual_learning_rate
from moe.systems.whisper.features import AudioContextOptions
from moe.training.loop import seed_everything
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.feasible import feasible
from steps.inputs.training import TrainingInputs, base_record, log_system, plan_of, read_base, training_facts, training_inputs
from steps.options.step_options import ExportOptions, TrainingStepOptions
from steps.reports.gate import log_classifier
from steps.reports.training import log_curves, log_kept
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

PLAIN = AugmentationOptions(n_masks=0, gain=0.0)  # the draw of the token alone
DOMAINS, TRAINABLE = "tables/domains.json", "tables/trainable.json"
SIMILARITIES = "tables/row_similarities.json"


@dataclasses.dataclass(frozen=True)
class StepOptions(
    DomainOptions,
    UnfreezeOptions,
    DomainTrainingOptions,
    AudioContextOptions,
    AugmentationOptions,
    ExportOptions,
    TrainingStepOptions,
):
    """Train a domain-token Whisper."""

    group = "domain"

    pretrain_run_id: str = option(help="run that holds the base model")
    max_quarantined: float = option(0.05, "share of the corpus that may be quarantined before the step fails", low=0, high=1)
    augment: bool = option(False, "all augmentation in adapter training too (on the demo SpecAugment cost both systems WER)")

    @property
    def augmentation(self) -> AugmentationOptions:
        """What changes an utterance in training."""
        return self.part(AugmentationOptions) if self.augment else PLAIN

    @property
    def base_dir(self) -> Path:
        """Where the base model lies."""
        return artifacts.upstream(self.pretrain_run_id, artifacts.BASE)

    @property
    def learning_rate(self) -> float:
        """The learning rate in use beside the tokens' rows."""
        return self.domain_learning_rate or usual_learning_rate(self.unfreeze, base_record(self.pretrain_run_id))

    def faults(self) -> list[str]:
        """Nothing that trains."""
        nothing = self.unfreeze == ROWS_ALONE and self.token_dropout == 1
        return [f"unfreeze={ROWS_ALONE} and token_dropout=1 train nothing: change one of them"] if nothing else []

    def idle(self) -> dict[str, str]:
        """Augmentation where there is none, rates of what does not train, and who is normal where nobody asks."""
        found = {} if self.augment else dict.fromkeys(names_of(AugmentationOptions), "needs augment=true")
        if self.unfreeze == ROWS_ALONE:
            found["domain_learning_rate"] = f"unfreeze={ROWS_ALONE} trains nothing beside the tokens' rows"
        if self.token_dropout == 1:
            found |= dict.fromkeys(("token_learning_rate", "token_init", "domain_confidence"), "token_dropout=1 trains no token")
        if self.domains != TWO and self.oversample == self.domain_loss_weight == 1:
            found["normal_etiologies"] = f"domains={self.domains} reads it with oversample or domain_loss_weight alone"
        return found


def run(options: StepOptions) -> str:
    """Train the recogniser, log the model and return the run id."""
    return runs.in_run("domain", options, _work, f"domain · {options.domains} · seed {options.seed}")


def _work(step: StepRun, options: StepOptions) -> None:
    prepared = read_prepared(options.prepare_run_id)
    domains = domains_of(options.part(DomainOptions), prepared.rows("train")["etiology"])
    refuse_dev(prepared, domains)
    refuse_base(options.base_dir, domains, options.part(UnfreezeOptions))
    plan = plan_of(options, options.domain_epochs, options.domain_batch_size, options.learning_rate)
    given = training_inputs(step, options, 100.0, plan)
    _log_domains(step, prepared, domains)
    seed_everything(options.seed)
    system = _new_system(options, prepared, domains)
    given = feasible(step, given, system.inputs, options.max_quarantined)
    trained = _train(options, given, system)
    facts = training_facts(system, trained.summary, options.seed)
    log_system(step, system, {"synthetic": bool(prepared.note), **facts}, options)
    _report(step, options, given, system, trained, facts)


def refuse_dev(prepared: Prepared, domains: Domains) -> None:
    """Refuse a dev split that no domain can be judged by.

    Raises:
        ValueError: naming the way out.
    """
    dev = prepared.rows("dev")["etiology"]
    if (domains.numbers(dev.tolist()) == NO_DOMAIN).all():
        raise ValueError(
            f"domains={', '.join(domains.names)}: no dev utterance belongs to one of them (dev has {', '.join(sorted(set(dev)))}); prepare the "
            f"corpus with complete_dev=true, or name the domain of plain folders with plain_domain"
        )


def refuse_base(folder: Path, domains: Domains, options: UnfreezeOptions) -> None:
    """Refuse a base that has the tokens already or fewer blocks than are to train, before it is loaded.

    Raises:
        ValueError: both of it, in one message.
    """
    faults = options.block_faults(WhisperConfig.from_pretrained(folder))
    faults += token_faults(WhisperTokenizer.from_pretrained(folder), domains.names)
    if faults:
        raise ValueError("; ".join(faults))


def _new_system(options: StepOptions, prepared: Prepared, domains: Domains) -> DomainSystem:
    """An untrained system on the base."""
    base, base_dir = read_base(options.pretrain_run_id, prepared.language, options.dropout)
    unfreezing, context = options.part(UnfreezeOptions), options.part(AudioContextOptions)
    shape = DomainShape(domains, options.token_place, options.domain_confidence, unfreezing, context)
    tokens, losses = options.part(TokenOptions), options.part(LossOptions)
    rates = (options.learning_rate, options.token_learning_rate)
    return build(base, base_dir, shape, prepared.language, prepared.label_normaliser, tokens, losses, rates)


def _train(options: StepOptions, given: TrainingInputs, system: DomainSystem) -> TrainedDomains:
    """Train on the rows as the balance of domains repeats them."""
    domains, balance = system.shape.domains, options.part(BalanceOptions)
    numbers = domains.numbers(given.train["etiology"].tolist())
    rows = balanced(numbers, domains.is_target, balance, options.seed)
    repeated = dataclasses.replace(given, train=given.train.iloc[rows].reset_index(drop=True))
    return train(
        system,
        repeated.train_set(system.inputs, system.from_manifest(repeated.train)),
        given.dev_set(system.inputs, system.from_manifest(given.dev)),
        given.plain_set(system.inputs),
        options.part(DomainTrainingOptions),
        given.training,
    )


def _log_domains(step: StepRun, prepared: Prepared, domains: Domains) -> None:
    """How many utterances of each split belong to each domain, and how many to none."""
    rows = prepared.manifest[prepared.manifest["split"] != "test"]
    domain = [domains.of(etiology) or "none" for etiology in rows["etiology"]]
    table = rows.assign(domain=domain).groupby(["domain", "split"]).size().unstack(fill_value=0).reset_index()
    step.log_table(table, DOMAINS)


def trainable(system: DomainSystem) -> pd.DataFrame:
    """What trains, counted by module: module, n_trainable, n_total."""
    counts: dict[str, list[int]] = {}
    for name, parameter in system.module.named_parameters():
        found = counts.setdefault(_module(name), [0, 0])
        found[0] += parameter.numel() * parameter.requires_grad
        found[1] += parameter.numel()
    return pd.DataFrame([(name, *found) for name, found in counts.items()], columns=["module", "n_trainable", "n_total"])


def _module(name: str) -> str:
    """`encoder.layers.3.self_attn` of a parameter's name."""
    parts = name.removeprefix("base.").removeprefix("model.").split(".")
    return ".".join(parts[:4] if "layers" in parts else parts[:2])


def _report(
    step: StepRun,
    options: StepOptions,
    given: TrainingInputs,
    system: DomainSystem,
    trained: TrainedDomains,
    facts: Mapping[str, float],
) -> None:
    numbers = system.shape.domains.numbers(given.train["etiology"].tolist())
    if judged := trained.classifier:
        log_classifier(step, judged.result, judged.vectors, judged.domains, system.shape.domains.names, given.prepared.note)
    share = {"token_share": token_share(numbers, options.token_dropout)}
    log_kept(step, options.selection, trained, system, facts)
    step.log_metrics(share)
    step.log_table(pd.DataFrame(row_similarities(system), columns=["domain", "other", "cosine"]), SIMILARITIES)
    history = pd.DataFrame(trained.history)
    step.log_table(trainable(system), TRAINABLE)
    step.log_table(history, "tables/history.json")
    if not options.no_plot:
        panels = {"dev CER": _columns(history, "cer"), "dev WER": _columns(history, "wer"), "dev loss": _columns(history, "loss")}
        log_curves(step, options.selection, trained, panels, system, given.prepared.note)
    step.add_to_name(given.prepared.name, f"dev {options.selection.replace('_', ' ')} {percent(trained.rate)}")
    step.describe(_description(options, given, system, trained, facts))


def _columns(history: pd.DataFrame, name: str) -> list[str]:
    return [column for column in history.columns if column == name or column.startswith(f"{name}/")]


def _description(
    options: StepOptions, given: TrainingInputs, system: DomainSystem, trained: TrainedDomains, facts: Mapping[str, Any]
) -> str:
    trains = describe(options.part(UnfreezeOptions), system.base.model.config)
    counted, judged = trainable(system), trained.classifier
    chosen = (
        f"The classifier finds the domain of {100 * judged.result.metrics['dev/accuracy']:.1f} % of dev."
        if judged
        else "It was trained without tokens, and gives none."
    )
    return (
        f"Dev {options.selection.replace('_', ' ')} {100 * trained.rate:.1f} %, {100 * trained.start_rate:.1f} % at the start"
        f"{', SYNTHETIC speech' if given.prepared.note else ''}.\n\nDomain-token Whisper. Domains: {', '.join(system.shape.domains.names)}. "
        f"Trains: {trains}; {facts['n_trainable']:,} of {facts['n_total']:,} parameters. {facts['n_utterances_seen']:,} utterances seen. "
        f"{trained.kept} is kept by dev {options.selection.replace('_', ' ')}. {chosen}\n\n"
        f"{markdown_table(counted[counted['n_trainable'] > 0])}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
