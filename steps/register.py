"""Entry point `register`: put the best system into the model registry as one self-contained pyfunc model, and see whether it becomes champion.

Of the `evaluate` runs given, the one of `register_system` with the lowest test WER is registered. It becomes `champion` if it is the first, or significantly
better than the champion on the same test set with no group worse by more than `max_group_regression`; otherwise it stays `challenger`, and
its tags say why. Example:
    mlflow run . --env-manager local -e register -P evaluate_run_ids=ID,ID
"""

import dataclasses
from typing import Any

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from analysis.pages.model_card import model_card
from analysis.promotion import Decision, decide
from analysis.systems import SystemScores
from moe.options import from_text, option
from moe.serving.requests import ServiceOptions
from moe.systems.table import SYSTEMS
from steps.options.ask_options import STEP_NAMES
from steps.options.step_options import RunOptions
from steps.registry import versions
from steps.registry.card_facts import card_facts
from steps.registry.signature import CARD, log_model
from steps.reports.scores import read_scores
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun
from steps.tracking.store import connect

ANY = "any"
MAX_TAG, MAX_DESCRIPTION = 4900, 4900  # characters that every registry keeps


@dataclasses.dataclass(frozen=True)
class StepOptions(RunOptions):
    """Register the best system."""

    evaluate_run_ids: str = option(help="evaluate runs to choose from, comma list")
    registered_model: str | None = option(None, "name in the registry (none: the system's, with dashes)")
    register_system: str = option("whisper_moe", "system to register, or any: the best of all", choices=(*SYSTEMS, ANY))
    max_group_regression: float = option(0.02, "WER that a group may lose against the champion (0.02: two points)", low=0, high=1)
    n_resamples: int = option(10_000, "bootstrap resamples over speakers", low=100)
    seed: int = option(42, "seed of everything drawn", low=0)

    @property
    def run_ids(self) -> list[str]:
        """The ids as a list."""
        return [part.strip() for part in self.evaluate_run_ids.split(",") if part.strip()]


def run(options: StepOptions) -> str:
    """Register the best system, promote it or not, and return the run id."""
    with runs.step_run("register", options, f"register · {options.registered_model or options.register_system}") as step:
        best = best_system([read_scores(run_id) for run_id in options.run_ids], options.register_system)
        name = options.registered_model or best.system.replace("_", "-")
        decision = judge(options, best, name)
        card = _card(step, name, best, decision)
        step.log_text(card, CARD)
        ask_type = SYSTEMS[best.system].ask_type
        info = log_model(model_run_of(best), serving_config(best), ask_type, card, name)
        version = str(info.registered_model_version)
        connect().client.update_model_version(name, version, description=card[:MAX_DESCRIPTION])
        _tag(step, name, best, version, decision)
        _log(step, name, best, version, decision)
    return step.run_id


def best_system(scores: list[SystemScores], system: str = ANY) -> SystemScores:
    """The evaluation of a system (or `any`) with the lowest WER.

    Raises:
        ValueError: none of the runs scored it.
    """
    found = [each for each in scores if system in (ANY, each.system)]
    if not found:
        there = ", ".join(sorted({each.system for each in scores}))
        raise ValueError(
            f"register_system={system}: none of the {len(scores)} evaluate runs scored it, they scored {there}: there is nothing to register"
        )
    return min(found, key=_wer)


def judge(options: StepOptions, best: SystemScores, registered: str) -> Decision:
    """Compare with the champion of a registered name on its own evaluation; the first model of a name has none to beat."""
    champion = versions.champion(registered)
    if champion is None:
        return Decision(True, "first: there was no champion", None, pd.DataFrame())
    name = f"version {champion.version}"
    try:
        scores = _scores_of(champion)
    except (RuntimeError, ValueError) as error:
        return Decision(False, f"cannot be compared with {name}: {error}", None, pd.DataFrame())
    return decide(best, scores, name, options.max_group_regression, options.n_resamples, options.seed)


def model_run_of(scores: SystemScores) -> str:
    """The run whose model an evaluation scored."""
    return connect().client.get_run(scores.run_id).data.params["model_run_id"]


def serving_config(scores: SystemScores) -> dict[str, Any]:
    """The decoding that was evaluated, and what was asked of the system, with the default bounds of a request."""
    logged = connect().client.get_run(scores.run_id).data.params
    ask_type = SYSTEMS[scores.system].ask_type
    names = {name: name for name in ("beam_size", "max_tokens_per_s")}
    names |= {STEP_NAMES.get(field.name, field.name): field.name for field in dataclasses.fields(ask_type)}
    kinds = {field.name: field.type for kind in (ServiceOptions, ask_type) for field in dataclasses.fields(kind)}
    given = {ours: from_text(logged[name], kinds[ours]) for name, ours in names.items() if name in logged}
    return dataclasses.asdict(ServiceOptions()) | dataclasses.asdict(ask_type()) | given


def _wer(system: SystemScores) -> float:
    return float(system.hypotheses["word_errors"].sum() / system.hypotheses["n_words"].sum())


def _scores_of(version: ModelVersion) -> SystemScores:
    """The evaluation that a registered version was judged by.

    Raises:
        ValueError: its tags name none.
    """
    run_id = version.tags.get("evaluate_run_id")
    if not run_id:
        raise ValueError(f"version {version.version} has no tag evaluate_run_id")
    return read_scores(run_id)


def _card(step: StepRun, registered: str, best: SystemScores, decision: Decision) -> str:
    run_id = model_run_of(best)
    lineage = artifacts.lineage(step.run_id)
    said = f"{'Champion' if decision.promoted else 'Challenger'}: {decision.reason}."
    model_dir = artifacts.upstream(run_id, artifacts.MODEL)
    facts = card_facts(registered, run_id, model_dir, serving_config(best), lineage, said)
    return model_card(facts, best)


def _tag(step: StepRun, registered: str, best: SystemScores, version: str, decision: Decision) -> None:
    """Tags first, then the alias: who finds a champion finds why it is one."""
    tags = {"test_wer": f"{_wer(best):.4f}", "evaluate_run_id": best.run_id, "model_run_id": model_run_of(best)}
    tags |= {"register_run_id": step.run_id, "synthetic": str(bool(best.metadata["note"])).lower(), "system": best.system}
    tags |= {"promoted": str(decision.promoted).lower(), "promotion_reason": decision.reason[:MAX_TAG]}
    versions.tag(registered, version, tags)
    versions.challenge(registered, version)
    if decision.promoted:
        versions.promote(registered, version)
    step.set_tags({"moe.registered": f"{registered}/{version}", "moe.promoted": tags["promoted"]})


def _log(step: StepRun, registered: str, best: SystemScores, version: str, decision: Decision) -> None:
    metrics = {"test/wer": _wer(best), "promoted": float(decision.promoted)}
    if decision.difference is not None:
        metrics["difference_to_champion"] = decision.difference.value
        step.log_table(decision.groups, "tables/groups_against_champion.json")
    step.log_metrics(metrics)
    alias = versions.CHAMPION if decision.promoted else versions.CHALLENGER
    lineage = "\n".join(f"- {name} `{run_id}`" for run_id, name in artifacts.lineage(step.run_id).items())
    print(f"{registered} version {version} is {alias}: {decision.reason}", flush=True)
    step.describe(
        f"## Registered {registered} version {version}\n{'SYNTHETIC speech only. ' if best.metadata['note'] else ''}"
        f"Test WER {100 * _wer(best):.1f} %. Alias `{alias}`: {decision.reason}. Everything it was made from:\n{lineage}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
