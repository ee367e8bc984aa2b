"""Entry point `register`: put the best system into the model registry as a self-contained pyfunc model, and see whether it becomes champion.

Of the `evaluate` runs given, the one of `register_system` with the lowest test WER is registered; unless it is significantly better than
its fair control, that one is registered beside it and takes its place. The one of them that is recommended becomes `champion` if it is
significantly better than the base model and, where there is a champion of the same test set, significantly better than that one with no
group worse by more than `max_group_regression`. Otherwise it is `challenger`, and its tags say why. Example:
    mlflow run . --env-manager local -e register -P evaluate_run_ids=ID,ID
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import mlflow

from analysis.pages.model_card import model_card
from analysis.promotion import Decision
from analysis.report import percent, percent_interval
from analysis.systems import SystemScores
from moe.files import folder_digest
from moe.options import from_text, listed, names_of, option
from moe.serving.requests import ServiceOptions
from moe.systems.table import SYSTEMS
from steps.options.ask_options import STEP_NAMES
from steps.options.step_options import RunOptions
from steps.registry import people, versions
from steps.registry.card_facts import card_facts
from steps.registry.judging import ANY, Judge, best_system, is_synthetic, overall_rates, registered_name, wer
from steps.registry.signature import CARD, log_model
from steps.reports.scores import corpus_of, read_scores
from steps.tracking import artifacts, runs
from steps.tracking.lineage import lineage_links
from steps.tracking.locks import one_at_a_time
from steps.tracking.run_ids import whole_id
from steps.tracking.step_run import StepRun
from steps.tracking.store import connect

MAX_TAG, MAX_DESCRIPTION = 4900, 4900  # characters that every registry keeps
CHAMPION_TAG = "moe.champion"  # of the run: who is champion of what and why, in a sentence
COMMIT_TAG = "mlflow.source.git.commit"


@dataclasses.dataclass(frozen=True)
class StepOptions(RunOptions):
    """Register the best system."""

    evaluate_run_ids: str = option(help="evaluate runs to choose from, comma list")
    registered_model: str | None = option(None, "name in the registry (none: the system's and the corpus's)")
    register_system: str = option("whisper_moe", "system to register, or any: the best of all", choices=(*SYSTEMS, ANY))
    max_group_regression: float = option(0.02, "WER that a group may lose against the champion (0.02: two points)", low=0, high=1)
    n_resamples: int = option(10_000, "bootstrap resamples over speakers", low=100)
    seed: int = option(42, "seed of everything drawn", low=0)

    @property
    def run_ids(self) -> list[str]:
        """The ids as a list."""
        return listed(self.evaluate_run_ids)


def run(options: StepOptions) -> str:
    """Register the best system, promote it or its fair control or neither, and return the run id."""
    alone = mlflow.active_run() is None  # a chain says who is champion in its last line
    with runs.step_run("register", options, " · ".join(filter(None, ["register", options.registered_model]))) as step:
        scores = [read_scores(run_id) for run_id in options.run_ids]
        best = best_system(scores, options.register_system)
        name = options.registered_model or registered_name(best)
        judge = Judge(scores, name, options.max_group_regression, options.n_resamples, options.seed)
        candidates = judge.candidates(best)
        with one_at_a_time(f"register {name}"):  # or two would be judged against the same champion
            champion = champion_line(name, _judged(step, name, judge, candidates))
        connect().client.update_registered_model(name, description=_front_page(name, champion))
        step.set_tags({CHAMPION_TAG: champion})
        if alone:
            print(champion, flush=True)
        _describe(step, candidates[-1], champion)
    return step.run_id


def _judged(step: StepRun, name: str, judge: Judge, candidates: Sequence[SystemScores]) -> list[str]:
    """Register all of them, of which the last may become champion; a sentence each that says what became of it."""
    *controlled, last = candidates
    said = [_register(step, name, system, judge.behind_control(system, last)) for system in controlled]
    return [*said, _register(step, name, last, judge.decide(last))]


def champion_line(name: str, said: list[str]) -> str:
    """Who is champion of what and why, and what became of every version of this run; `said` has a sentence for each."""
    champion = versions.champion(name)
    if champion is None:
        return f"No champion of {name} yet. {' '.join(said)}"
    tags = champion.tags
    who = f"Champion of {tags.get('corpus', name)}: models:/{name}@{versions.CHAMPION}, version {champion.version}"
    why = f"{tags.get('title', 'made champion by hand')}, {tags.get('test_wer_interval', '')} WER: {tags.get('promotion_reason', '')}"
    others = [sentence for sentence in said if not sentence.startswith(f"Version {champion.version} ")]
    return " ".join([f"{who} ({why}).", *others])


def _register(step: StepRun, name: str, system: SystemScores, decision: Decision) -> str:
    """Log one system as a new version of a name with its card, tags and aliases; a sentence that says what became of it."""
    card = _card(step, name, system, decision)
    step.log_text(card, CARD)
    config = serving_config(system) | {"people_of": name}
    info = log_model(model_run_of(system), config, SYSTEMS[system.system].ask_type, card, name)
    version = str(info.registered_model_version)
    connect().client.update_model_version(name, version, description=card[:MAX_DESCRIPTION])
    _tag(step, name, system, version, decision)
    _log(step, system, decision)
    alias = versions.CHAMPION if decision.promoted else versions.CHALLENGER
    return f"Version {version} ({system.name}) is {alias}: {decision.reason}.{_people_words(name, system) if decision.promoted else ''}"


def _people_words(name: str, system: SystemScores) -> str:
    """How many people a promotion leaves without what they were enrolled with."""
    n = people.left_without(name, folder_digest(artifacts.upstream(model_run_of(system), artifacts.MODEL)))
    return f" {n} people were enrolled with another recogniser and are not served until they are enrolled again." if n else ""


def model_run_of(scores: SystemScores) -> str:
    """The run whose model an evaluation scored."""
    return whole_id(connect().client.get_run(scores.run_id).data.params["model_run_id"])


def serving_config(scores: SystemScores) -> dict[str, Any]:
    """The decoding that was evaluated, and what was asked of the system, with the default bounds of a request."""
    logged = connect().client.get_run(scores.run_id).data.params
    ask_type = SYSTEMS[scores.system].ask_type
    names = {name: name for name in ("beam_size", "max_tokens_per_s")}
    names |= {STEP_NAMES.get(field.name, field.name): field.name for field in dataclasses.fields(ask_type)}
    kinds = {field.name: field.type for kind in (ServiceOptions, ask_type) for field in dataclasses.fields(kind)}
    given = {ours: from_text(logged[name], kinds[ours]) for name, ours in names.items() if name in logged}
    asked = ask_type(**{name: value for name, value in given.items() if name in names_of(ask_type)})
    return dataclasses.asdict(ServiceOptions()) | given | dataclasses.asdict(SYSTEMS[scores.system].served(asked))


def _card(step: StepRun, registered: str, best: SystemScores, decision: Decision) -> str:
    run_id = model_run_of(best)
    lineage = artifacts.lineage(step.run_id)
    said = f"{'Champion' if decision.promoted else 'Challenger'}: {decision.reason}."
    model_dir = artifacts.upstream(run_id, artifacts.MODEL)
    facts = card_facts(registered, run_id, model_dir, serving_config(best), lineage, said)
    return model_card(facts, best)


def _front_page(name: str, champion: str) -> str:
    """What the page of the registered model shows: who is champion, and the card of that version or of the newest."""
    client, held = connect().client, versions.champion(name)
    newest = max(client.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))
    card = (held or newest).description or ""
    return f"{champion}\n\n{card}"[:MAX_DESCRIPTION]


def _tag(step: StepRun, registered: str, system: SystemScores, version: str, decision: Decision) -> None:
    """Tags first, then the alias: who finds a champion finds why it is one."""
    rates, metadata = overall_rates(system), system.metadata
    made_by = connect().client.get_run(model_run_of(system)).data.tags
    tags = {"test_wer": f"{wer(system):.4f}", "test_wer_interval": percent_interval(*rates[["wer", "low", "high"]])}
    tags |= {"test_set": f"{corpus_of(system)}: {rates['n_utterances']} utterances of {rates['n_speakers']} speakers"}
    tags |= {
        "corpus": corpus_of(system),
        "data_digest": str(metadata["test_set_digest"]),
        "commit": made_by.get(COMMIT_TAG, "unknown"),
    }
    tags |= {"evaluate_run_id": system.run_id, "model_run_id": model_run_of(system), "register_run_id": step.run_id}
    tags |= {"synthetic": str(is_synthetic(system)).lower(), "system": system.system, "title": system.name}
    tags |= {"promoted": str(decision.promoted).lower(), "promotion_reason": decision.reason[:MAX_TAG]}
    versions.tag(registered, version, tags)
    give = versions.promote if decision.promoted else versions.challenge
    give(registered, version)
    step.set_tags({"moe.registered": f"{registered}/{version}", "moe.promoted": tags["promoted"]})


def _log(step: StepRun, system: SystemScores, decision: Decision) -> None:
    """Of two systems the last, which may become champion, gives the run its numbers."""
    if decision.difference is not None:
        step.log_metrics({"difference_to_champion": decision.difference.value})
        step.log_table(decision.groups, "tables/groups_against_champion.json")


def _describe(step: StepRun, system: SystemScores, champion: str) -> None:
    step.log_metrics({"test/wer": wer(system)})
    step.add_to_name(corpus_of(system), f"{system.name}, WER {percent(wer(system))}")
    synthetic = "SYNTHETIC speech only. " if is_synthetic(system) else ""
    step.describe(f"{champion}\n\n{synthetic}Everything that the last version was made from:\n\n{lineage_links(step.run_id)}")


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
