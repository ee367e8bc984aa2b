"""Clusters of embeddings, one for each expert: `ClusteringOptions` in, `UtteranceClusters` out, `sweep` to choose their number."""

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ClusteringOptions
from moe.clustering.selection import sweep

__all__ = ["ClusteringOptions", "UtteranceClusters", "sweep"]
