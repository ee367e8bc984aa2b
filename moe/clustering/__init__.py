"""Clusters of embeddings, one for each expert: `ClusteringOptions` in, `UtteranceClusters` out, `sweep` to choose their number."""

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.expert_count import sweep
from moe.clustering.options import ClusteringOptions

__all__ = ["ClusteringOptions", "UtteranceClusters", "sweep"]
