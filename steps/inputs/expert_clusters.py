"""The clusters of a `cluster` run, numbered as the experts of an `experts` run, which may have merged some of them."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from moe.clustering.assigner import joined_columns
from moe.clustering.clusters import UtteranceClusters
from moe.corpora.tables import write_table
from moe.files import read_json
from steps.inputs.corpus import soft_labels
from steps.tracking import artifacts


def expert_of_cluster(experts_run_id: str | None) -> list[int] | None:
    """The expert of each cluster; None where each has its own."""
    if experts_run_id is None:
        return None
    found: list[int] | None = read_json(artifacts.upstream(experts_run_id, artifacts.EXPERTS_RECORD)).get("expert_of_cluster")
    return None if found is None or len(set(found)) == len(found) else found


def read_labels(cluster_run_id: str | None, experts_run_id: str | None) -> pd.DataFrame:
    """The table of labels, by expert: `cluster`, and a column `soft_<expert>` for each."""
    labels = pd.read_parquet(artifacts.upstream(cluster_run_id, artifacts.LABELS))
    experts = expert_of_cluster(experts_run_id)
    return labels if experts is None else joined_labels(labels, np.array(experts))


def joined_labels(labels: pd.DataFrame, experts: np.ndarray) -> pd.DataFrame:
    """Labels with the expert (E,) of each cluster in its place."""
    soft = joined_columns(soft_labels(labels), experts)
    rest = labels.drop(columns=[name for name in labels.columns if name.startswith("soft_")])
    columns = {f"soft_{expert}": soft[:, expert] for expert in range(soft.shape[1])}
    return rest.assign(cluster=experts[labels["cluster"]].astype(labels["cluster"].dtype), **columns)


@contextlib.contextmanager
def clusters_of_experts(cluster_run_id: str | None, experts_run_id: str | None) -> Iterator[dict[str, Path]]:
    """The folder to lay beside a model, by its name, inside the block; nothing where there are no clusters."""
    if cluster_run_id is None:
        yield {}
        return
    folder, experts = artifacts.upstream(cluster_run_id, artifacts.CLUSTERS), expert_of_cluster(experts_run_id)
    if experts is None:
        yield {artifacts.CLUSTERS: folder}
        return
    with tempfile.TemporaryDirectory() as temporary:
        joined = Path(temporary) / artifacts.CLUSTERS
        UtteranceClusters.load(folder).joined(experts).save(joined)
        write_table(joined / Path(artifacts.LABELS).name, read_labels(cluster_run_id, experts_run_id))
        yield {artifacts.CLUSTERS: joined}
