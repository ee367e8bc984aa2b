"""Entry point `compare`: several `evaluate` runs in one table, with tests between them and a verdict in words.

Refuses runs scored on different test sets or with different normalisers. Example:
    mlflow run . -e compare -P evaluate_run_ids=ID,ID,ID
"""

import dataclasses
import tempfile
from pathlib import Path

import pandas as pd

from analysis.comparison import Comparison, compare
from analysis.report import markdown_table, percent
from analysis.systems import SystemScores
from analysis.verdict import readable_table
from moe.files import read_json
from moe.options import Options, option
from steps import tracking
from steps.step_run import StepRun
from steps.store import connect

NAMES = {"whisper_moe": "Whisper-MoE", "single_lora": "one LoRA, same size", "zero_shot": "base model"}


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Compare evaluation runs."""

    evaluate_run_ids: str = option("none", "evaluate runs to compare, comma list")
    n_resamples: int = option(10_000, "bootstrap resamples over speakers", low=100)
    seed: int = option(42, "seed of everything drawn", low=0)

    def faults(self) -> list[str]:
        """At least two runs, each once."""
        ids = self.run_ids
        if len(ids) < 2 or len(set(ids)) < len(ids):
            return [f"evaluate_run_ids={self.evaluate_run_ids}: must be two or more evaluate runs, each once"]
        return []

    @property
    def run_ids(self) -> list[str]:
        """The ids as a list."""
        return [part.strip() for part in self.evaluate_run_ids.split(",") if part.strip()]


def run(options: StepOptions) -> str:
    """Compare, log tables and figures, and return the run id."""
    with tracking.step_run("compare", options, f"compare · {len(options.run_ids)} evaluations") as step:
        systems = [read_scores(run_id) for run_id in options.run_ids]
        notes = sorted({system.metadata["note"] for system in systems} - {""})
        comparison = compare(systems, n_resamples=options.n_resamples, seed=options.seed, note=", ".join(notes))
        for system in systems:
            digest = str(system.metadata["test_set_digest"])
            step.log_input("test manifest", digest, f"runs:/{system.metadata['prepare_run_id']}", "test", len(system.hypotheses))
        _log(step, comparison, ablation_table(systems))
    return step.run_id


def read_scores(evaluate_run_id: str) -> SystemScores:
    """What an evaluation run found, ready to compare."""
    scores = read_json(tracking.upstream(evaluate_run_id, tracking.SCORES))
    hypotheses = pd.read_parquet(tracking.upstream(evaluate_run_id, tracking.HYPOTHESES))
    return SystemScores(
        name=NAMES.get(scores["system"], scores["system"]),
        run_id=evaluate_run_id,
        kind=scores["kind"],
        hypotheses=hypotheses,
        metadata=scores,
        expert_wer=scores["expert_wer"],
        history=_history(evaluate_run_id),
    )


def ablation_table(systems: list[SystemScores]) -> pd.DataFrame:
    """WER of each mixture under each routing, lowest first."""
    rows = [
        {"system": system.name, "run_id": system.run_id, "routing": routing, "wer": wer}
        for system in systems
        for routing, wer in system.metadata["ablations"].items()
    ]
    return pd.DataFrame(rows, columns=["system", "run_id", "routing", "wer"]).sort_values("wer", ignore_index=True)


def _history(evaluate_run_id: str) -> pd.DataFrame | None:
    """Dev WER by epoch of the run whose model was scored."""
    client = connect().client
    parameters = client.get_run(evaluate_run_id).data.params
    named = [parameters.get(name, "none") for name in ("asr_run_id", "baseline_run_id")]
    model_run_id = next(run_id for run_id in named if run_id != "none")
    points = client.get_metric_history(model_run_id, "dev/wer")
    return pd.DataFrame({"epoch": [p.step for p in points], "dev/wer": [p.value for p in points]}) if points else None


def _log(step: StepRun, comparison: Comparison, ablations: pd.DataFrame) -> None:
    routing = markdown_table(ablations.assign(wer=ablations["wer"].map(percent))[["system", "routing", "wer"]]) if len(ablations) else ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report = comparison.markdown() + (f"\n## Routing ablations\n\n{routing}" if routing else "")
        (folder / "comparison.md").write_text(report, encoding="utf-8")
        (folder / "comparison.html").write_text(comparison.html(), encoding="utf-8")
        for name in ("comparison.md", "comparison.html"):
            step.log_file(folder / name)
    step.log_table(comparison.table, tracking.COMPARISON)
    for name in ("table", "by_group", "tests", "group_tests"):
        step.log_table(getattr(comparison, name), f"tables/{name}.csv")
    step.log_table(readable_table(comparison.table), "tables/table.json")
    step.log_table(ablations, "tables/ablations.json")
    for name, figure in comparison.figures.items():
        step.log_figure(figure, f"plots/{name}.png")
    step.log_metrics({f"wer/{row.system}": row.wer for row in comparison.table.itertuples()})
    note = f"*{comparison.note}*\n\n" if comparison.note else ""
    step.describe(f"## Comparison\n{note}{comparison.verdict}\n\n{markdown_table(readable_table(comparison.table))}\n{routing}")


def main() -> None:
    """Command line."""
    tracking.command(run, StepOptions)


if __name__ == "__main__":
    main()
