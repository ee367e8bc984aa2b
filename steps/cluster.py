"""Entry point `cluster`: clusters of the training embeddings, one per expert.

Reads `prepare` (etiologies, speakers) and `embed` runs; writes the artifact `clusters` with the label of every train and dev utterance.
Clusters are fitted on the stage's part of the train split; everyone else is assigned by the fitted object. Example:
    mlflow run . --env-manager local -e cluster -P prepare_run_id=ID -P embed_run_id=ID -P num_experts=6
"""

import dataclasses
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from analysis.clusters import ClusterScores, cluster_scores, cluster_sizes
from analysis.groups import several
from analysis.plots.clusters import cluster_heatmap, embedding_map, sweep_figure
from analysis.report import markdown_table
from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ClusteringOptions
from moe.corpora.tables import write_table
from moe.options import option, to_text
from moe.routing.embeddings import Embeddings, read_embeddings
from steps.inputs.corpus import Prepared, read_prepared, soft_labels
from steps.options.step_options import PlotOptions, default_experts
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

MAP_POINTS = 4000
COUNTS = ("min_cluster_size", "n_clusters", "n_noise", "relative_validity")  # of an attempt


@dataclasses.dataclass(frozen=True)
class StepOptions(ClusteringOptions, PlotOptions):
    """Cluster the embeddings."""

    prepare_run_id: str = option(help="run that made the manifest")
    embed_run_id: str = option(help="run that made the embeddings")
    embed_percent: float = option(5.0, "part of the train split that clusters are fitted on, percent", above=0, high=100)
    data_percent: float = option(100.0, "scales every stage's part of the train split", above=0, high=100)
    stage_floor: int = option(
        2000, "a stage gets at least so many utterances where there are so many, scaled by data_percent", low=1
    )
    plot_method: str = option("pca", "projection of the cluster plot; umap compiles for seconds first", choices=("pca", "umap"))

    def faults(self) -> list[str]:
        """A projection of no plot."""
        if self.no_plot and self.is_changed("plot_method"):
            return [f"plot_method={self.plot_method}: no_plot=true draws no cluster plot"]
        return []


def run(options: StepOptions) -> str:
    """Cluster, log the fitted object and the labels, and return the run id."""
    name = f"cluster · {options.clustering_algorithm} · {options.cluster_unit} · {to_text(options.num_experts)} experts"
    with runs.step_run("cluster", options, name) as step, tempfile.TemporaryDirectory() as temporary:
        prepared = read_prepared(options.prepare_run_id)
        clustering = options.part(ClusteringOptions)
        if clustering.num_experts is None:
            clustering = dataclasses.replace(clustering, num_experts=default_experts(bool(prepared.note)))
        embeddings = read_embeddings(artifacts.upstream(options.embed_run_id, artifacts.EMBEDDINGS))
        known = prepared.manifest[prepared.manifest["utterance_id"].isin(set(embeddings.utterance_ids))]
        fitted = prepared.train(options.embed_percent, options.data_percent, options.stage_floor, options.seed)
        prepared.log_input(step, fitted, "training")
        clusters = UtteranceClusters(clustering).fit(
            embeddings.select(fitted["utterance_id"]), fitted["utterance_id"], fitted["speaker"], fitted["etiology"]
        )
        labels = label_all(clusters, fitted, known, embeddings)
        folder = Path(temporary) / artifacts.CLUSTERS
        clusters.save(folder)
        write_table(folder / Path(artifacts.LABELS).name, labels)
        step.log_folder(folder, artifacts.CLUSTERS)
        _report(step, options, prepared, clusters, labels, embeddings)
    return step.run_id


def label_all(clusters: UtteranceClusters, fitted: pd.DataFrame, known: pd.DataFrame, embeddings: Embeddings) -> pd.DataFrame:
    """Cluster, noise flag and soft labels (`soft_0` …) of every embedded utterance: as fitted, or assigned by the fitted object."""
    others = known[~known["utterance_id"].isin(set(fitted["utterance_id"]))]
    labels, soft, noise = clusters.labels_, clusters.soft_labels_, clusters.noise_
    if len(others):
        more_labels, more_soft = clusters.assign(embeddings.select(others["utterance_id"]), others["speaker"].to_numpy())
        labels, soft = np.concatenate([labels, more_labels]), np.concatenate([soft, more_soft])
        noise = np.concatenate([noise, np.zeros(len(others), bool)])
    table = pd.concat([fitted, others])[["utterance_id", "speaker", "etiology", "split"]].reset_index(drop=True)
    table = table.assign(cluster=labels, noise=noise, fitted=np.arange(len(table)) < len(fitted))
    table = table.join(pd.DataFrame(soft, columns=[f"soft_{expert}" for expert in range(soft.shape[1])]))
    return table.sort_values("utterance_id", ignore_index=True)


def _report(
    step: StepRun,
    options: StepOptions,
    prepared: Prepared,
    clusters: UtteranceClusters,
    labels: pd.DataFrame,
    embeddings: Embeddings,
) -> None:
    fitted = labels[labels["fitted"]].reset_index(drop=True)
    points = embeddings.select(fitted["utterance_id"])
    points = (points - points.mean(0)) / np.clip(points.std(0), 1e-6, None)
    shown = np.where(fitted["noise"], -1, fitted["cluster"])
    scores = cluster_scores(shown, fitted["etiology"], points, soft_labels(fitted), options.seed)
    table = pd.crosstab(fitted["cluster"], fitted["etiology"])
    step.log_metrics(_metrics(scores, labels))
    step.log_table(pd.crosstab(shown, fitted["etiology"], rownames=["cluster"]).reset_index(), "tables/cluster_by_etiology.json")
    step.log_table(cluster_sizes(fitted["cluster"], fitted["noise"]), "tables/sizes.json")
    _report_search(step, options, clusters, prepared.note)
    if not options.no_plot:
        counts = pd.crosstab(shown, fitted["etiology"])
        if several(fitted):
            step.log_figure(cluster_heatmap(counts, note=prepared.note), "plots/cluster_by_etiology.png")
        step.log_figure(_map(options, points, fitted, prepared.note), "plots/embeddings.png")
    step.add_to_name(prepared.name, f"{scores.n_clusters} clusters, Rand index {scores.adjusted_rand:.2f}")
    step.describe(_description(options, prepared, clusters, scores, table))


def _report_search(step: StepRun, options: StepOptions, clusters: UtteranceClusters, note: str) -> None:
    """Every HDBSCAN attempt, every number of experts judged, and the units to which `assign` gives another label than theirs."""
    attempts, sweep = pd.DataFrame(clusters.attempts_), pd.DataFrame(clusters.sweep_)
    step.log_metrics(
        {"n_exceptions": len(clusters.exceptions_), "n_units": clusters.n_units_, "n_fitted_units": clusters.n_fitted_}
    )
    step.log_table(pd.DataFrame({options.cluster_unit: clusters.exceptions_}, dtype=object), "tables/exceptions.json")
    if len(attempts):
        step.log_table(attempts.astype(str), "tables/attempts.json")
        step.log_history(
            [(i, {f"attempt/{name}": row[name] for name in COUNTS if name in row}) for i, row in enumerate(clusters.attempts_)]
        )
    if len(sweep):
        step.log_table(sweep, "tables/sweep.json")
    if len(sweep) and not options.no_plot:
        step.log_figure(sweep_figure(sweep, clusters.n_clusters_, note=note), "plots/sweep.png")


def _metrics(scores: ClusterScores, labels: pd.DataFrame) -> dict[str, float]:
    values = {name: value for name, value in dataclasses.asdict(scores).items() if value == value}
    dev = labels[labels["split"] == "dev"]
    if len(dev):
        values["dev/adjusted_rand"] = cluster_scores(dev["cluster"], dev["etiology"]).adjusted_rand
    return values


def _map(options: StepOptions, points: np.ndarray, fitted: pd.DataFrame, note: str) -> Figure:
    """The plane of what was clustered: a point for each speaker, its mean, or for each utterance."""
    if options.cluster_unit == "speaker":
        speakers = fitted["speaker"].to_numpy()
        fitted = fitted.drop_duplicates("speaker").sort_values("speaker", ignore_index=True)
        points = np.stack([points[speakers == speaker].mean(0) for speaker in fitted["speaker"]])
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(points))[:MAP_POINTS])
    points, fitted = points[chosen], fitted.iloc[chosen]
    clusters = fitted["cluster"].to_numpy()
    shown, sent_to = np.where(fitted["noise"], -1, clusters), None if options.noise == "uniform" else clusters
    flat, names = _plane(options, points)
    title, fate = f"{options.cluster_unit.capitalize()}s by {options.plot_method.upper()}", options.noise.replace("_", " ")
    groups = fitted["etiology"].to_numpy()
    return embedding_map(flat, shown, groups, title, note=note, sent_to=sent_to, fate=fate, axis_names=names)


def _plane(options: StepOptions, points: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Points (N, D) in the plane, (N, 2), and what the axes are."""
    if options.plot_method == "umap":
        return _umap(points, options.seed), ("UMAP 1 (no unit)", "UMAP 2 (no unit)")
    pca = PCA(2, random_state=options.seed)
    flat = pca.fit_transform(points)
    first, second = (
        f"principal component {number} ({100 * share:.0f} % of the variance)"
        for number, share in enumerate(pca.explained_variance_ratio_, start=1)
    )
    return flat, (first, second)


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    import umap  # compiles for seconds: only where it is asked for

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs.*")
        return umap.UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(points)


def _description(
    options: StepOptions, prepared: Prepared, clusters: UtteranceClusters, scores: ClusterScores, table: pd.DataFrame
) -> str:
    sent = ", ".join(f"{etiology} → {table[etiology].idxmax()}" for etiology in table.columns)
    return "\n".join(
        [
            f"{scores.n_clusters} clusters of {clusters.n_units_} {options.cluster_unit}s"
            f"{' of SYNTHETIC speech' if prepared.note else ''}, adjusted Rand index against etiology {scores.adjusted_rand:.2f}.",
            "",
            f"`{clusters.algorithm_}` ({scores.n_points} utterances), {scores.n_noise} noise points ({options.noise}), "
            f"silhouette {scores.silhouette:.2f}, entropy of the soft labels {scores.soft_entropy:.2f} (0 sharp, 1 flat).",
            "",
            f"Most utterances of each etiology: {sent}.",
            "",
            markdown_table(table.reset_index()),
        ]
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
