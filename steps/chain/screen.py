"""What a chain says on the screen: a line as it begins, one for each stage as it ends, and the result.

No line is longer than `WIDTH`, paths and commands apart, and that of a stage fits the terminal: what it leaves out is in the stage's run.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import pandas as pd
from mlflow.utils.uri import is_local_uri

from analysis.report import cell
from analysis.verdict import best_sentence, readable_table
from steps.chain.options import MIXTURE, ChainOptions
from steps.options.step_options import SYNTHETIC
from steps.reports.experiment_report import REPORT
from steps.tracking import artifacts
from steps.tracking.step_run import NOTE_TAG
from steps.tracking.store import connect, project_root

WIDTH, MIN_WIDTH = 160, 80
SHOWN = ("system", "trainable", "gating accuracy", "WER", "CER", "against base", "utterances/s", "training")
TESTS = "tables/tests.csv"
RUN_ID = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")
RULE = "In our tests a mixture was better than one LoRA of its size with 80 utterances in a group, as good with 150 to 450, not with 900: compare both."
OWN_CORPUS = "mlflow run . --env-manager local -P corpus=folder -P dataset_root=FOLDER -P whisper_model=openai/whisper-small"


def opening(options: ChainOptions) -> str:
    """What a chain is about to do."""
    said = f"corpus={options.corpus}, systems={options.systems}, seed={options.seed}, until={options.until}"
    return fitted(f"main: {said}; what was done before is reused") + (f"\n{RULE}" if is_own_mixture(options) else "")


def is_own_mixture(options: ChainOptions) -> bool:
    """Whether a mixture is trained on a user's corpus, who should know where one LoRA was as good."""
    return options.corpus != SYNTHETIC and MIXTURE in options.system_names


def stage_line(title: str, word: str, run_id: str, seconds: float, reason: str) -> str:
    """A stage that ended: its name, `ran` or `reused`, its run, how long it took, and why."""
    why = RUN_ID.sub(r"\1", " ".join(reason.split()))
    width = min(WIDTH, max(MIN_WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns))
    return fitted(f"{title:<21} {word:<6} {run_id[:8]} {seconds:7.1f} s  ({why})", width, end=")")


def result_lines(compare_run_id: str, options: ChainOptions) -> list[str]:
    """The table of a comparison, its verdict in a sentence, where the pictures are, and what comes next."""
    table = pd.read_parquet(artifacts.upstream(compare_run_id, artifacts.COMPARISON))
    tests = pd.read_csv(artifacts.upstream(compare_run_id, TESTS))
    note = ["These are numbers of synthetic speech: they say nothing about patients."] if options.corpus == SYNTHETIC else []
    where = f"Pictures and tables: {_report(compare_run_id)}; every run with its plots: make ui"
    found = ["", *table_lines(readable_table(table)), "", best_sentence(table, tests), *note, "", where]
    return found + (_own_recordings() if options.corpus == SYNTHETIC else [])


def evaluation_lines(run_ids: Sequence[str]) -> list[str]:
    """What evaluations found, where nothing compares them: the first two paragraphs of their descriptions."""
    client = connect().client
    paragraphs = [client.get_run(run_id).data.tags[NOTE_TAG].split("\n\n")[:2] for run_id in run_ids]
    found = [line for each in paragraphs for said in ["", *each] for line in wrap(said, WIDTH, break_on_hyphens=False) or [""]]
    return [*found, "Every run with its tables and plots: make ui"]


def table_lines(table: pd.DataFrame) -> list[str]:
    """A readable table as text, each column as wide as its longest cell; columns that only the report has room for are left out."""
    shown = table[[name for name in SHOWN if name in table.columns]]
    rows = [list(shown.columns), *([cell(value) for value in row] for row in shown.itertuples(index=False, name=None))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [fitted("  ".join(map(str.ljust, row, widths)).rstrip()) for row in rows]


def fitted(line: str, width: int = WIDTH, end: str = "") -> str:
    """The line, cut where it is too long, with the `end` that it had."""
    return line if len(line) <= width else f"{line[: width - 2 - len(end)]} …{end}"


def _report(compare_run_id: str) -> str:
    """The report's path from here; of a store elsewhere, the run that holds it."""
    if not is_local_uri(connect().client.get_run(compare_run_id).info.artifact_uri):
        return f"{REPORT} of run {compare_run_id}"
    path = artifacts.upstream(compare_run_id, REPORT)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _own_recordings() -> list[str]:
    """The command for one's own corpus, as it works in a shell that knows nothing of the environment this process runs in."""
    environment = project_root() / ".venv"
    activate = ". .venv/bin/activate && " if Path(sys.prefix) == environment else ""
    return [
        "Your own recordings: FOLDER holds them and a manifest.csv with the columns path, transcript, speaker and etiology; then",
        f"    {activate}{OWN_CORPUS}",
    ]
