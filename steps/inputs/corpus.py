"""What later steps need of a `prepare` run: the manifest, where its audio is, and what to write under every picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from moe.corpora.locations import CorpusRoot, Root, is_address
from moe.corpora.manifest import read_manifest
from moe.corpora.preparation import NORMALISED
from moe.corpora.presence import refuse_missing, refuse_unsharded
from moe.corpora.shard_cache import ShardCacheOptions
from moe.corpora.subsets import at_most, stage_percent, subset
from moe.files import entry_digest, file_digest, read_json
from moe.text.normalisers import RAW, normalise
from steps.tracking import artifacts
from steps.tracking.step_run import StepRun

CORPUS_FILE = "corpus.json"
SYNTHETIC_NOTE = "synthetic speech (espeak-ng), simulated styles"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared corpus as a step reads it.

    Attributes:
        root: folder or address that the manifest's paths start from.
        normaliser: name of the text normaliser by which the test split is scored; its version is in `normaliser_version`.
        note: shown under every picture; says so where speech is synthetic.
        caution: stands in every report of an evaluation; says so where speakers may be in train and in test.
        references: `normalised`, or `raw` where a model learns to write casing and punctuation.
        name: of the corpus, as runs and registered models are named after it.
    """

    run_id: str
    manifest: pd.DataFrame
    root: Root
    normaliser: str
    normaliser_version: str
    language: str
    note: str
    digest: str
    name: str
    caution: str = ""
    references: str = NORMALISED

    @property
    def label_normaliser(self) -> str:
        """Name of the normaliser of what a model learns to write."""
        return RAW if self.references == RAW else self.normaliser

    def rows(self, split: str, utterance_ids: Sequence[str] | None = None) -> pd.DataFrame:
        """The utterances of a split, or those of them with these ids, sorted by id; `reference` is what training and dev have to write.

        Raises:
            ValueError: the split is empty.
        """
        rows = self.manifest[self.manifest["split"] == split]
        if utterance_ids is not None:
            rows = rows[rows["utterance_id"].isin(set(utterance_ids))]
        if not len(rows):
            raise ValueError(f"the manifest of prepare run {self.run_id} has no {split} utterances")
        if self.label_normaliser == RAW and split != "test":
            rows = rows.assign(reference=[normalise(RAW, text) for text in rows["transcript"]])
        return rows.reset_index(drop=True)

    def train(self, percent: float, data_percent: float, floor: int, seed: int) -> pd.DataFrame:
        """The part of the train split that a stage works on; parts of one seed nest."""
        train = self.rows("train")
        return self.rows("train", subset(train, stage_percent(percent, data_percent, floor, len(train)), seed))

    def dev(self, n_train: int, share: float, seed: int) -> pd.DataFrame:
        """The dev utterances scored after each epoch over `n_train`: at most `share` as many, evenly from all strata, one of each at least."""
        dev = self.rows("dev")
        n_wanted = max(int(share * n_train), dev["etiology"].nunique(dropna=False))
        return self.rows("dev", at_most(dev, n_wanted, seed))

    def refuse_missing(self, *parts: pd.DataFrame, shards_together: int | None = None) -> None:
        """Before audio of these rows is read.

        Raises:
            ValueError: shards that they lie in are gone, or are to be taken together where there are none.
        """
        rows = pd.concat(parts)
        refuse_unsharded(rows, shards_together)
        refuse_missing(rows, self.root)

    def log_input(self, run: StepRun, rows: pd.DataFrame, context: str) -> None:
        """Record the utterances that a step read."""
        run.log_input(f"{context} manifest", self.digest, f"runs:/{self.run_id}/{artifacts.MANIFEST}", context, len(rows))


def read_prepared(prepare_run_id: str, cache: ShardCacheOptions | None = None) -> Prepared:
    """The corpus that a `prepare` run made.

    Args:
        cache: where shards at an address are kept, for a step that reads the audio.
    """
    path = artifacts.upstream(prepare_run_id, artifacts.MANIFEST)
    corpus = read_json(artifacts.upstream(prepare_run_id, CORPUS_FILE))
    root = corpus["root"] or str(artifacts.upstream(corpus["synthesize_run_id"], artifacts.CORPUS))
    trusted = tuple(corpus.get("trusted_roots", ()))
    kept = cache.shard_cache() if cache and is_address(root) else None
    note = SYNTHETIC_NOTE if corpus["synthetic"] else ""
    return Prepared(
        prepare_run_id, read_manifest(path), CorpusRoot(root, trusted, kept) if trusted or kept else root, corpus["normaliser"], corpus["normaliser_version"], corpus["language"], note,
        file_digest(path), corpus["name"], corpus.get("caution", ""), corpus.get("references", NORMALISED),
    )  # fmt: skip


def corpus_name(corpus: str, dataset_root: str | None) -> str:
    """What a corpus is called: the last part of its folder, address or hub name; a synthetic one has none."""
    return str(dataset_root).rstrip("/").rpartition("/")[2] if dataset_root else corpus


def soft_labels(labels: pd.DataFrame) -> np.ndarray:
    """Soft labels in a cluster run's table of labels, (N, E)."""
    return labels[[name for name in labels.columns if name.startswith("soft_")]].to_numpy(np.float32)


def path_digests(dataset_root: str | None) -> dict[str, str]:
    """Digest of each top-level entry of a local corpus, so that a changed byte re-runs what reads it; a remote one has none."""
    folder = Path(dataset_root) if dataset_root else None
    if folder is None or not folder.is_dir():
        return {}
    return {f"corpus/{entry.name}": entry_digest(entry) for entry in sorted(folder.iterdir())}
