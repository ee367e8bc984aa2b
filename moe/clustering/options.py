"""What a user may say about clustering, under the documents' names, and which combinations are impossible.

An option that the chosen algorithm could not honour is refused when it differs from its default: nothing is accepted and ignored.
"""

import dataclasses
from typing import Any

from moe.options import Options, option, to_text

AUTO = "auto"
N_EXPERTS = 8
ALGORITHMS = ("hdbscan", "spectral", "balanced", "by_etiology", "random")
ANGLE_METRICS = ("cosine", "correlation")  # Euclidean distance between unit vectors orders pairs as these do
METRICS = ("euclidean", *ANGLE_METRICS, "manhattan", "chebyshev")
HDBSCAN_BACKENDS = ("best", "generic", "prims_kdtree", "prims_balltree", "boruvka_kdtree", "boruvka_balltree")
REDUCTIONS = ("none", "pca", "umap")
CLUSTER_UNITS = ("utterance", "speaker")
NOISE_FATES = ("nearest", "own_expert", "uniform")
ONLY_HDBSCAN = (
    "min_cluster_size", "min_clusters", "min_samples", "allow_single_cluster", "hdbscan_algorithm", "max_retries", "noise",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExpertCountOptions(Options):
    """How many experts there are."""

    group = "cluster"

    num_experts: int | str | None = option(
        None,
        "number of experts, for hdbscan and by_etiology the most; auto: a sweep chooses (none: 8, on the synthetic corpus one per style, 6)",
        low=1,
        choices=(AUTO,),
        common=True,
    )

    @property
    def n_asked(self) -> int | None:
        """The number, where one is given."""
        return self.num_experts if isinstance(self.num_experts, int) else None


@dataclasses.dataclass(frozen=True)
class ClusteringOptions(ExpertCountOptions):
    """How embeddings are divided into clusters, one for each expert.

    Balanced clusters of speaker profiles are the default: on the demo (`benchmarks.quality`, three seeds) the mixture was as good on them as
    on HDBSCAN's and by etiology (spectral: 0.6 points behind, not significant), and no expert gets too few speakers to learn from.
    """

    group = "cluster"

    clustering_algorithm: str = option(
        "balanced",
        "how clusters are found; random is the control that shows whether they matter",
        choices=ALGORITHMS,
        common=True,
    )
    cluster_unit: str = option("speaker", "what is clustered: utterances, or each speaker's mean", choices=CLUSTER_UNITS)
    min_cluster_size: int = option(5, "HDBSCAN: smallest cluster of the first attempt", low=2)
    min_clusters: int = option(8, "HDBSCAN: an attempt with fewer clusters is retried with a smaller min_cluster_size", low=1)
    min_samples: int | None = option(None, "HDBSCAN: neighbours of a core point; none: as min_cluster_size", low=1)
    metric: str = option("euclidean", "distance between embeddings; with umap that of its neighbourhoods", choices=METRICS)
    allow_single_cluster: bool = option(False, "HDBSCAN: one cluster may be found instead of noise alone")
    hdbscan_algorithm: str = option("best", "HDBSCAN: backend", choices=HDBSCAN_BACKENDS)
    no_reduce_experts: bool = option(False, "fail when fewer than num_experts clusters are found")
    min_experts: int = option(2, "fewest clusters to go on with; below it hdbscan falls back to spectral", low=1)
    max_retries: int = option(5, "HDBSCAN: attempts after the first, min_cluster_size falling to 2", low=0)
    reduce: str = option("pca", "reduction of the z-scored embeddings", choices=REDUCTIONS)
    reduce_dim: int = option(50, "dimensions after reduction, fewer where the data have fewer", low=1)
    noise: str = option(
        "nearest", "fate of HDBSCAN's noise: nearest cluster, an expert of its own, all alike", choices=NOISE_FATES
    )
    max_fit: int = option(10000, "largest number of units that are clustered; a stratified sample where there are more", low=10)
    seed: int = option(42, "seed of everything drawn", low=0, common=True)

    @property
    def n_wanted(self) -> int | None:
        """The number of experts; None where it is to be chosen."""
        return None if self.num_experts == AUTO else self.n_asked or N_EXPERTS

    def faults(self) -> list[str]:
        """Combinations that could not be honoured."""
        return [*self._number_faults(), *self._unused_faults(), *self._metric_faults()]

    def _number_faults(self) -> list[str]:
        faults = []
        if self.n_wanted is not None and self.min_experts > self.n_wanted:
            faults.append(f"min_experts={self.min_experts}: must be at most num_experts={self.n_wanted}")
        if self.no_reduce_experts and self.n_wanted is None:
            faults.append("no_reduce_experts=true: needs a number in num_experts, not auto")
        if self.num_experts == 1 and self.noise == "own_expert":
            faults.append("noise=own_expert with num_experts=1: noise would be the only expert; 2 at least")
        return faults

    def _unused_faults(self) -> list[str]:
        unused = [] if self.clustering_algorithm == "hdbscan" else list(ONLY_HDBSCAN)
        faults = [
            f"{name}={to_text(getattr(self, name))}: only clustering_algorithm=hdbscan has it, not {self.clustering_algorithm}"
            for name in unused
            if getattr(self, name) != default_of(name)
        ]
        if self.reduce == "none" and self.reduce_dim != default_of("reduce_dim"):
            faults.append(f"reduce_dim={self.reduce_dim}: reduce=none keeps all dimensions")
        return faults

    def _metric_faults(self) -> list[str]:
        if self.clustering_algorithm == "balanced" and self.metric not in ("euclidean", *ANGLE_METRICS):
            allowed = ", ".join(("euclidean", *ANGLE_METRICS))
            return [f"metric={self.metric}: clustering_algorithm=balanced works with means and needs one of {allowed}"]
        return []


def default_of(name: str) -> Any:
    """The default of one option."""
    return ClusteringOptions.__dataclass_fields__[name].default
