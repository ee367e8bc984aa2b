"""The whole experiment as one self-contained page, for a reader who has no MLflow: question, corpus, systems, tests, pictures, next steps."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis.comparison import Comparison
from analysis.next_steps import next_steps
from analysis.plots.corpus import splits_of
from analysis.report import html_page
from analysis.systems import SystemScores
from steps.inputs.corpus import Prepared, read_prepared
from steps.reports.scores import corpus_of
from steps.tracking import artifacts

REPORT = "report.html"
PICTURES = {
    "cluster": ("plots/embeddings.png", "plots/cluster_by_etiology.png"),
    "gate": ("plots/reliability.png", "plots/speakers.png"),
    "experts": ("plots/training.png",),
    "asr": ("plots/expert_profiles.png",),
}
COSTS = (
    "Hours of training are those of one processor core, all threads counted, or those that an accelerator was held. Memory is the most that "
    "the process, or the accelerator, held while the test set was decoded. Costs stand here only where systems differ by more than two "
    "measurements of one system do: 25 % of a time, 10 % of memory."
)


def experiment_report(found: Comparison, systems: Sequence[SystemScores]) -> str:
    """The page as text."""
    prepared, corpus = _prepared(str(systems[0].metadata["prepare_run_id"])), corpus_of(systems[0])
    lineage = {run_id: step for system in systems for run_id, step in artifacts.lineage(system.run_id).items()}
    tables = found.sections()
    sections: dict[str, object] = {
        "What was asked": _question(found, corpus),
        "Answer": found.verdict,
        "What to do next": next_steps(found.table, found.tests, found.by_group),
        "Corpus": _corpus(prepared) if prepared else [],
        "Systems": [tables["Systems"], COSTS],
        "Tests": tables["Tests"],
        "Pictures": list[Figure](found.figures.values()),
        "How the mixture was made": _pictures(lineage),
        "By group": tables["By group"],
        "Runs": pd.DataFrame([(step, run_id) for run_id, step in lineage.items()], columns=["step", "run id"]),
    }
    return html_page(
        f"Experiment on the corpus {corpus}", {name: part for name, part in sections.items() if _is_there(part)}, found.note
    )


def _question(found: Comparison, corpus: str) -> str:
    names = ", ".join(found.table["system"])
    first = found.table.iloc[0]
    return (
        f"Which recogniser makes the fewest word errors on speakers of the corpus {corpus} whom none was trained on: {names}? "
        f"All were scored on the same {int(first['n_utterances'])} utterances of {int(first['n_speakers'])} speakers."
    )


def _prepared(run_id: str) -> Prepared | None:
    """The corpus, where the store still holds it."""
    try:
        return read_prepared(run_id)
    except RuntimeError:
        return None


def _corpus(prepared: Prepared) -> list[object]:
    said = f"References by `{prepared.normaliser_version}`. No speaker is in two splits; evaluation alone read the test split."
    return [_amounts(prepared.manifest), said]


def _amounts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Utterances, speakers and hours by split."""
    rows = manifest.groupby("split").agg(
        utterances=("utterance_id", "size"),
        speakers=("speaker", "nunique"),
        hours=("duration_s", lambda seconds: seconds.sum() / 3600),
    )
    return rows.loc[splits_of(manifest)].round({"hours": 2}).reset_index()


def _pictures(lineage: dict[str, str]) -> list[object]:
    """Pictures that earlier runs hold, each step's once, under a line that names the run."""
    found: list[object] = []
    for step, names in PICTURES.items():
        run_id = next((each for each, name in lineage.items() if name == step), None)
        folder = artifacts.upstream(run_id, artifacts.FINGERPRINT).parent if run_id else None
        paths = [folder / name for name in names if folder is not None and (folder / name).is_file()]
        found += [f"{step}, run {run_id}", *(path.read_bytes() for path in paths)] if paths else []
    return found


def _is_there(part: object) -> bool:
    return len(part) > 0 if isinstance(part, (list, pd.DataFrame)) else bool(part)
