"""What a step may do to its MLflow run: log numbers, files, tables, pictures and inputs under names the project agrees on.

`steps.tracking.runs.step_run` opens the run and gives one of these.
"""

import dataclasses
import functools
import json
import logging
import posixpath
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from steps.tracking.metric_log import log_all
from steps.tracking.names import MetricNames, store_name
from steps.tracking.resuming import OpenRun
from steps.tracking.secrets import public

ARTIFACTS_TAG = "moe.artifacts"
SHOWN_TABLES_TAG = "mlflow.loggedArtifacts"
NOTE_TAG = "mlflow.note.content"
MAX_DIGEST, MAX_PARAMETER, MAX_NOTE = 36, 6000, 7900
TABLE_FORMATS = (".json", ".csv", ".parquet")
CUT = "\n\n… (cut: the store keeps no longer text)"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepRun:
    """An open run of one step."""

    client: MlflowClient
    opened: OpenRun
    step: str
    name: str  # in the UI, before the result is known
    plots: bool = True  # whether this run is to have pictures

    @property
    def run_id(self) -> str:
        """Its id in the store."""
        return self.opened.run_id

    @functools.cached_property
    def metric_names(self) -> MetricNames:
        """What its metrics are called, those that it holds already among them."""
        return MetricNames(sorted({name for name, _ in self.opened.metrics.held}))

    def log_metrics(self, values: Mapping[str, float], update: int = 0) -> None:
        """Log numbers in one call; `update` is the update or epoch they belong to."""
        self.log_history([(update, values)])

    def log_history(self, history: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log many (update or epoch, numbers) pairs together, in as few calls as the store allows; see `steps.tracking.metric_log`."""
        now, history = int(time.time() * 1000), list(history)
        for update, values in history:
            log.info("%s, %d: %s", self.step, update, ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
        self.opened.metrics.add(
            [
                Metric(self.metric_names.of(name), float(value), now, update)
                for update, values in history
                for name, value in values.items()
            ]
        )

    def keep_metrics(self) -> None:
        """Make sure that what was logged until now outlives this process, before a checkpoint relies on it.

        Raises:
            OSError: the store does not answer and the disk takes nothing.
        """
        self.opened.metrics.keep()

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Log parameters that the run does not hold yet, secrets hidden.

        `mlflow run` has logged its own text of them already, with shell quotes where a value has a space, and refuses another.
        """
        held = self.client.get_run(self.run_id).data.params
        missing = [Param(name, value[:MAX_PARAMETER]) for name, value in public(parameters).items() if name not in held]
        log_all(self.client, self.run_id, parameters=missing)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags in one call."""
        self.client.log_batch(self.run_id, tags=[RunTag(store_name(name), str(value)) for name, value in tags.items()])

    def add_to_name(self, corpus: str, result: str = "") -> None:
        """Put result and corpus into the run's name, before the seed: the runs table shows the beginning of a name."""
        parts = self.name.split(" · ")
        seeds = [part for part in parts if part.startswith("seed ")]
        kept = [part for part in parts if part not in seeds]
        self.client.update_run(self.run_id, name=" · ".join(filter(None, [*kept, result, corpus, *seeds])))

    def describe(self, markdown: str) -> None:
        """Set the run's description; its first line is what was found, then come what was read and made."""
        kept = markdown if len(markdown) <= MAX_NOTE else markdown[: MAX_NOTE - len(CUT)] + CUT
        self.set_tags({NOTE_TAG: kept})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Copy a file into the run, below `folder`."""
        self._note(posixpath.join(folder, Path(path).name))
        self.client.log_artifact(self.run_id, str(path), folder or None)

    def log_folder(self, path: Path, artifact: str) -> None:
        """Copy a folder into the run under the name `artifact`."""
        self._note(artifact)
        self.client.log_artifacts(self.run_id, str(path), artifact)

    def log_text(self, text: str, artifact: str) -> None:
        """Write a text as an artifact."""
        self._note(artifact)
        self.client.log_text(self.run_id, text, artifact)

    def log_figure(self, figure: Any, artifact: str) -> None:
        """Save a matplotlib figure where the UI shows it inline, as .png for a screen and as .svg for print beside it, and close it."""
        import matplotlib.pyplot

        self._note(artifact)
        for ending in (".png", ".svg"):
            self.client.log_figure(self.run_id, figure, str(Path(artifact).with_suffix(ending)))
        matplotlib.pyplot.close(figure)

    def log_table(self, table: pd.DataFrame, artifact: str) -> None:
        """Save a table, in place of an earlier one of that name. The UI shows .json as a table and the head of a .csv, not .parquet.

        Raises:
            ValueError: another ending.
        """
        ending = Path(artifact).suffix
        if ending not in TABLE_FORMATS:
            raise ValueError(f"table {artifact!r}: must end in one of {', '.join(TABLE_FORMATS)}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(artifact).name
            _write_table(table, path)
            self.log_file(path, posixpath.dirname(artifact))
        if ending == ".json":
            self._show_as_table(artifact)

    def log_input(self, name: str, digest: str, source: str, context: str, n_rows: int) -> None:
        """Record data that the step read, under our own digest (MLflow's reads the first 10 000 rows only).

        Args:
            name: what the data is, e.g. `manifest`.
            digest: hex digest of its content; the store keeps the first 36 characters.
            source: path, or artifact and run id, it came from.
            context: `training`, `validation` or `test`.
            n_rows: number of utterances.
        """
        data = Dataset(
            name=name,
            digest=digest[:MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": int(n_rows)}),
        )
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def artifacts(self) -> list[str]:
        """Top-level names of everything logged so far, sorted."""
        held = self.client.get_run(self.run_id).data.tags.get(ARTIFACTS_TAG, "")
        return sorted(filter(None, held.split(",")))

    def _show_as_table(self, artifact: str) -> None:
        """Tell the UI that this JSON file is a table, as `mlflow.log_table` does (which appends where we replace)."""
        held = json.loads(self.client.get_run(self.run_id).data.tags.get(SHOWN_TABLES_TAG, "[]"))
        entry = {"path": artifact, "type": "table"}
        if entry not in held:
            self.set_tags({SHOWN_TABLES_TAG: json.dumps([*held, entry])})

    def _note(self, artifact: str) -> None:
        """Remember the artifact's top-level name, by which a later reuse sees whether the files are still there."""
        held, top = self.artifacts(), artifact.split("/")[0]
        if top not in held:
            self.set_tags({ARTIFACTS_TAG: ",".join([*held, top])})


def _write_table(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".json":
        table.to_json(path, orient="split", index=False, date_format="iso")
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
