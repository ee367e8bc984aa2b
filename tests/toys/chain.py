"""Runs of a toy chain: the options of one whose earlier runs do not exist yet, and what is read of those that do."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pandas as pd

from moe.files import read_json
from moe.options import Options
from steps.chain.options import ChainOptions
from steps.chain.stages import planned, stage_options
from steps.tracking import artifacts
from steps.tracking.store import connect

PLAIN = {"no_plot": True, "evaluation_view": False}  # an evaluation without pictures and MLflow's own view, which takes seconds


def pending_options(module: ModuleType, options: ChainOptions) -> Options:
    """The options with which the chain starts a step the first time."""
    given = next(given for each, given in planned(options) if each is module)
    return stage_options(module, options, **given)


@dataclasses.dataclass(frozen=True)
class Runs:
    """A corpus, the run that prepared it and the run that trained on it."""

    corpus: Path
    prepared: str
    trained: str

    def metrics(self, run_id: str) -> dict[str, float]:
        """The last value of each metric of a run."""
        return connect().client.get_run(run_id).data.metrics

    def table(self, name: str) -> pd.DataFrame:
        """A table of the run that trained."""
        return read_table(self.trained, name)


def read_table(run_id: str, name: str) -> pd.DataFrame:
    """A table of a run."""
    table = read_json(artifacts.upstream(run_id, name))
    return pd.DataFrame(table["data"], columns=table["columns"])
