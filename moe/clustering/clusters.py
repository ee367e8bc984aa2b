"""`UtteranceClusters`: fitted on train embeddings, it gives every utterance, known or new, a cluster and soft labels.

Chain: embeddings → units (units.py) → space of distances (reduction.py) → partition (search.py) → fate of noise (noise.py) →
references for new points (assigner.py). Clusters are numbered by size, then by smallest id, so row order never renames them.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from moe.clustering.assigner import Assigner, chunks
from moe.clustering.noise import settle_noise
from moe.clustering.numbering import cluster_names, final_order, labels_of_etiologies
from moe.clustering.options import ClusteringOptions
from moe.clustering.partition import NOISE, Partition, entropy, one_hot
from moe.clustering.reduction import Reduction, fitted_points
from moe.clustering.search import find_partition
from moe.clustering.units import Units, checked_embeddings, make_units, speaker_profiles, stratified_sample
from moe.files import write_whole_dir

ARRAYS_FILE, SUMMARY_FILE = "clusters.safetensors", "clusters.json"


class UtteranceClusters:
    """Clusters of utterances or of speakers.

    After `fit`, for the N rows given to it in their order:
        labels_ (N,), soft_labels_ (N, n_clusters_), noise_ (N,) bool; n_clusters_; algorithm_ (the one that made the partition);
        attempts_ (one dict for each HDBSCAN attempt and fallback); sweep_ (one dict for each number that auto judged);
        names_ (one for each cluster); soft_entropy_ (0 sharp, 1 flat);
        exceptions_ (ids of units to which `assign` gives another label than `labels_`); n_units_, n_fitted_.
    """

    def __init__(self, options: ClusteringOptions) -> None:
        self.options = options

    def fit(
        self,
        embeddings: np.ndarray,
        utterance_ids: Sequence[str],
        speakers: Sequence[str] | None = None,
        etiologies: Sequence[str] | None = None,
    ) -> "UtteranceClusters":
        """Find clusters of embeddings (N, n_dims); speakers are needed for cluster_unit=speaker, etiologies for by_etiology.

        Raises:
            ValueError: input that cannot be clustered as asked, with the thing, its value and what is allowed.
        """
        if self.options.clustering_algorithm == "by_etiology" and etiologies is None:
            raise ValueError("clustering_algorithm=by_etiology needs the etiology of each utterance")
        units = make_units(embeddings, utterance_ids, speakers, etiologies, self.options.cluster_unit)
        self._check_divisible(units)
        sample = stratified_sample(units.etiologies, self.options.max_fit, self.options.seed)
        with threadpool_limits(1):  # sums of several threads differ in their last bits, and the partition with them
            partition = self._fit_sample(units, sample)
        self._label_all(units, sample, partition)
        return self

    def assign(self, embeddings: np.ndarray, speakers: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N,) and soft labels (N, n_clusters_) of new embeddings (N, n_dims).

        With cluster_unit=speaker and speakers given, all utterances of a speaker get the clusters of their mean; otherwise each
        utterance is assigned alone, and the answer does not depend on what else is in the batch.

        Raises:
            ValueError: not the dimensions that were fitted, values that are not finite, or not as many speakers as embeddings.
        """
        embeddings = checked_embeddings(embeddings)
        if embeddings.shape[1] != len(self._reduction.mean):
            raise ValueError(
                f"embeddings of {embeddings.shape[1]} dimensions: clusters were fitted on {len(self._reduction.mean)}"
            )
        if self.options.cluster_unit == "utterance" or speakers is None:
            return self._assign_units(embeddings)[:2]
        if len(speakers) != len(embeddings):
            raise ValueError(f"{len(speakers)} speakers for {len(embeddings)} embeddings: must be as many")
        _, profiles, unit_of_row = speaker_profiles(embeddings, np.asarray(speakers, dtype=str), np.arange(len(embeddings)))
        labels, soft, _ = self._assign_units(profiles)
        return labels[unit_of_row], soft[unit_of_row]

    def save(self, path: Path) -> None:
        """Write everything that `assign` needs to a folder: safetensors and JSON."""
        assigner, reduction = self._assigner, self._reduction
        arrays = {"mean": reduction.mean, "scale": reduction.scale, "points": assigner.points, "labels": assigner.labels}
        arrays |= {"soft": assigner.soft, "noise": assigner.noise}
        if reduction.components is not None:
            arrays["components"] = reduction.components
        with write_whole_dir(path) as aside:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, aside / ARRAYS_FILE)
            (aside / SUMMARY_FILE).write_text(json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "UtteranceClusters":
        """Clusters that can assign; attributes that describe the training rows are absent."""
        arrays = load_file(Path(path) / ARRAYS_FILE)
        summary = json.loads((Path(path) / SUMMARY_FILE).read_text(encoding="utf-8"))
        clusters = cls(ClusteringOptions(**summary.pop("options")))
        for name, value in summary.items():
            setattr(clusters, f"{name}_", value)
        reduction = Reduction(arrays["mean"], arrays["scale"], arrays.get("components"), clusters.options.metric)
        clusters._reduction = reduction
        clusters._assigner = Assigner(arrays["points"], arrays["labels"], arrays["soft"], arrays["noise"], reduction.distance)
        return clusters

    def joined(self, cluster_of: Sequence[int]) -> "UtteranceClusters":
        """Clusters of which some are one, to assign by; cluster i becomes `cluster_of[i]`. What was found in fitting stays as it was said."""
        numbers, found = np.asarray(cluster_of), copy.copy(self)
        found._assigner = self._assigner.joined(numbers)
        found.n_clusters_ = int(numbers.max()) + 1
        found.names_ = [
            " and ".join(name for name, number in zip(self.names_, cluster_of, strict=True) if number == new)
            for new in range(found.n_clusters_)
        ]
        found.soft_entropy_ = entropy(found._assigner.soft)
        return found

    def summary(self) -> dict[str, Any]:
        """Options and findings in plain values, as written to JSON."""
        names = ("n_clusters", "algorithm", "attempts", "sweep", "names", "soft_entropy", "exceptions", "n_units", "n_fitted")
        return {"options": dataclasses.asdict(self.options), **{name: getattr(self, f"{name}_") for name in names}}

    def _check_divisible(self, units: Units) -> None:
        if self.options.clustering_algorithm == "by_etiology" or self.options.num_experts == 1:
            return
        wanted = self.options.n_wanted or self.options.min_experts
        name = "num_experts" if self.options.n_wanted else "min_experts"
        if len(units) < wanted:
            raise ValueError(f"{name}={wanted}: only {len(units)} {self.options.cluster_unit}s to cluster, must be at most that")
        if (units.vectors == units.vectors[0]).all():
            raise ValueError(f"{name}={wanted}: the embeddings of all {len(units)} {self.options.cluster_unit}s are the same")

    def _fit_sample(self, units: Units, sample: np.ndarray) -> Partition:
        vectors, options = units.vectors[sample], self.options
        self._reduction, points, distance = fitted_points(vectors, options)  # points (n_fitted, n_reduced)
        partition = find_partition(points, distance, units.etiologies[sample], options)
        labels, soft = settle_noise(partition, points, distance, options.noise)
        linear = self._reduction.transform(vectors)  # the same as points, except with umap
        self._assigner = Assigner(linear, labels, soft, partition.labels == NOISE, self._reduction.distance)
        return partition

    def _label_all(self, units: Units, sample: np.ndarray, partition: Partition) -> None:
        labels, soft, noise = self._spread(units, sample, partition)
        n_experts, rows = soft.shape[1], units.unit_of_row
        by_id = np.sort(rows)  # one entry for each row, in the order of units: sizes are counted in rows
        order = final_order(labels[by_id], n_experts, partition.n_clusters)
        rank = np.argsort(order)
        self._assigner = self._assigner.renumbered(order)
        self.labels_, self.soft_labels_, self.noise_ = rank[labels][rows], soft[:, order][rows], noise[rows]
        self.n_clusters_, self.n_units_, self.n_fitted_ = n_experts, len(units), len(sample)
        self.algorithm_, self.attempts_ = partition.algorithm, list(partition.attempts)
        self.sweep_ = list(partition.sweep)
        self.names_ = cluster_names(partition, n_experts, order)
        self.soft_entropy_ = entropy(self.soft_labels_)
        own = np.arange(len(units)) if partition.algorithm == "by_etiology" else sample  # the assigner itself labelled the rest
        self.exceptions_ = units.ids[own][self._assign_units(units.vectors[own])[0] != rank[labels][own]].tolist()

    def _spread(self, units: Units, sample: np.ndarray, partition: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assigner = self._assigner
        labels, noise = np.zeros(len(units), dtype=np.int64), np.zeros(len(units), dtype=bool)
        soft = np.zeros((len(units), assigner.soft.shape[1]))
        labels[sample], soft[sample], noise[sample] = assigner.labels, assigner.soft, assigner.noise
        rest = np.setdiff1d(np.arange(len(units)), sample)
        if partition.algorithm == "by_etiology":
            labels = labels_of_etiologies(units.etiologies, sample, assigner.labels)
            soft = one_hot(labels, soft.shape[1])
        elif len(rest):
            labels[rest], soft[rest], noise[rest] = self._assign_units(units.vectors[rest])
        return labels, soft, noise

    def _assign_units(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = [self._assigner.assign(self._reduction.transform(vectors[rows])) for rows in chunks(len(vectors), "assign")]
        labels, soft, noise = (np.concatenate(part) for part in zip(*parts, strict=True))
        return labels, soft, noise
