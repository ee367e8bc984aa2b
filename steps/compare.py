"""Entry point `compare`: several `evaluate` runs in one table, with tests between them and a verdict in words.

Runs of one system with the same options are its seeds; where an option differs, the table names it. Refuses runs scored on different test
sets or with different normalisers. Example:
    mlflow run . --env-manager local -e compare -P evaluate_run_ids=ID,ID2,ID3
    mlflow run . --env-manager local -e compare -P evaluate_filter="params.prepare_run_id = 'ID'"
In a notebook, without a run:
    from steps.compare import compare
    found = compare(["ID", "ID"]); found.table; found.figures["wer_by_etiology"]
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis import comparison
from analysis.comparison import Comparison
from analysis.intervals import N_RESAMPLES
from analysis.report import markdown_table, percent
from analysis.systems import SystemScores
from analysis.verdict import readable_table
from moe.options import listed, option
from steps.options.step_options import PlotOptions
from steps.reports.experiment_report import REPORT, experiment_report
from steps.reports.scores import corpus_of, find_runs, read_scores
from steps.reports.system_names import metric_names, tell_apart
from steps.tracking import artifacts
from steps.tracking import runs as tracking
from steps.tracking.step_run import StepRun

NO_IDS = "none"


@dataclasses.dataclass(frozen=True)
class StepOptions(PlotOptions):
    """Compare evaluation runs."""

    evaluate_run_ids: str = option(NO_IDS, "evaluate runs to compare, comma list")
    evaluate_filter: str | None = option(None, "instead of ids: all finished evaluate runs that match this MLflow filter")
    compare_against: str | None = option(
        None,
        "systems that all others are tested against, comma list (none: the base and each one's fair control); Holm over these tests",
    )
    n_resamples: int = option(10_000, "bootstrap resamples over speakers", low=100)
    seed: int = option(42, "seed of everything drawn", low=0)

    def faults(self) -> list[str]:
        """Ids or a filter; at least two ids, each once."""
        ids = self.run_ids
        if self.evaluate_filter:
            return [] if self.evaluate_run_ids == NO_IDS else ["give one of evaluate_run_ids and evaluate_filter"]
        if len(ids) < 2 or len(set(ids)) < len(ids):
            return [f"evaluate_run_ids={self.evaluate_run_ids}: must be two or more evaluate runs, each once"]
        return []

    @property
    def against(self) -> list[str] | None:
        """The systems to test against as a list; None leaves it to the roles."""
        return None if self.compare_against is None else listed(self.compare_against)

    @property
    def run_ids(self) -> list[str]:
        """The ids as a list."""
        return listed(self.evaluate_run_ids)


def run(options: StepOptions) -> str:
    """Compare, log tables and figures, and return the run id."""
    run_ids = find_runs(options.evaluate_filter) if options.evaluate_filter else options.run_ids
    with tracking.step_run("compare", options, f"compare · {len(run_ids)} evaluations") as step:
        if options.evaluate_filter:
            step.log_parameters({"found_run_ids": ",".join(run_ids)})  # the lineage is read from parameters of such a name
        systems = tell_apart([read_scores(run_id) for run_id in run_ids])
        found = _compare(systems, None, options.n_resamples, options.seed, not options.no_plot, options.against)
        for system in systems:
            digest = str(system.metadata["test_set_digest"])
            step.log_input("test manifest", digest, f"runs:/{system.metadata['prepare_run_id']}", "test", len(system.hypotheses))
        step.log_text(experiment_report(found, systems), REPORT)
        _log(step, found, ablation_table(systems), metric_names(systems), corpus_of(systems[0]))
    return step.run_id


def compare(
    runs: Sequence[str] | str,
    base: str | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 42,
    plots: bool = True,
    against: Sequence[str] | None = None,
) -> Comparison:
    """Compare evaluation runs from Python; nothing is logged.

    Args:
        runs: ids of `evaluate` runs, or an MLflow filter that finds them.
        base: the system that changes are measured against, as the table names it; None takes the base model.
        against: systems that all others are tested against; None takes the base and each one's fair control.

    Raises:
        ValueError: fewer than two systems, or runs that were not scored alike; the message names the difference.
        RuntimeError: a run that does not exist or did not finish.
    """
    run_ids = find_runs(runs) if isinstance(runs, str) else list(runs)
    return _compare(tell_apart([read_scores(run_id) for run_id in run_ids]), base, n_resamples, seed, plots, against)


def ablation_table(systems: list[SystemScores]) -> pd.DataFrame:
    """WER of each mixture under each routing, lowest first."""
    rows = [
        {
            "system": system.name,
            "run_id": system.run_id,
            "routing": routing,
            "wer": wer,
            "n_utterances": system.metadata.get("ablation_utterances", len(system.hypotheses)),
        }
        for system in systems
        for routing, wer in system.metadata["ablations"].items()
    ]
    return pd.DataFrame(rows, columns=["system", "run_id", "routing", "wer", "n_utterances"]).sort_values(
        "wer", ignore_index=True
    )


def _compare(
    systems: list[SystemScores], base: str | None, n_resamples: int, seed: int, plots: bool, against: Sequence[str] | None
) -> Comparison:
    notes = sorted({system.metadata["note"] for system in systems} - {""})
    return comparison.compare(
        systems, base, n_resamples=n_resamples, seed=seed, note=", ".join(notes), plots=plots, against=against
    )


def _log(step: StepRun, found: Comparison, ablations: pd.DataFrame, names: Mapping[str, str], corpus: str) -> None:
    """Log a comparison; `names` are those of its systems as metrics call them."""
    routing = (
        markdown_table(ablations.assign(wer=ablations["wer"].map(percent))[["system", "routing", "wer", "n_utterances"]])
        if len(ablations)
        else ""
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report = found.markdown() + (f"\n## Routing ablations\n\n{routing}" if routing else "")
        (folder / "comparison.md").write_text(report, encoding="utf-8")
        (folder / "comparison.html").write_text(found.html(), encoding="utf-8")
        for name in ("comparison.md", "comparison.html"):
            step.log_file(folder / name)
    step.log_table(found.table, artifacts.COMPARISON)
    for name in ("table", "by_group", "tests", "group_tests", "experts"):
        step.log_table(getattr(found, name), f"tables/{name}.csv")
    step.log_table(readable_table(found.table), "tables/table.json")
    step.log_table(ablations, "tables/ablations.json")
    for name, figure in found.figures.items():
        step.log_figure(figure, f"plots/{name}.png")
    step.log_metrics({f"test/wer/{names[row.system]}": row.wer for row in found.table.itertuples()})
    best = found.table.loc[found.table["wer"].idxmin()]
    step.add_to_name(corpus, f"lowest WER {percent(best['wer'])}, {best['system']}")
    note = f"\n\n*{found.note}*" if found.note else ""
    step.describe(f"{found.verdict}{note}\n\n{markdown_table(readable_table(found.table))}\n{routing}")


def main() -> None:
    """Command line."""
    tracking.command(run, StepOptions)


if __name__ == "__main__":
    main()
