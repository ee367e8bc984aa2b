"""The corpora of the domain-token benchmark: the demo's, and one in which the token alone decides the text."""

import dataclasses
import fcntl
import hashlib
from pathlib import Path

import pandas as pd

from benchmarks.speed.__main__ import RESULTS
from moe.corpora.manifest import read_manifest, write_manifest
from moe.corpora.preparation import PreparationOptions, prepare
from moe.files import write_whole_dir
from moe.synthesis.corpus import synthesize
from moe.synthesis.planning import SynthesisOptions

FOLDER = RESULTS / "domain_tokens"
ARTICLES = {"the", "a", "an"}
WITH, WITHOUT = "with-articles", "without-articles"
RULE, DEMO = "rule", "demo"
SPEECH = {
    RULE: SynthesisOptions(
        styles="typical", n_train_speakers=40, n_utterances=60, n_dev_speakers=4, n_dev_utterances=25, n_test_speakers=10
    ),
    DEMO: SynthesisOptions(),
}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus on disk, the same for every row."""

    manifest: pd.DataFrame
    root: str

    def part(self, split: str) -> pd.DataFrame:
        """The rows of a split."""
        return self.manifest[self.manifest["split"] == split].reset_index(drop=True)


def corpus_of(name: str) -> Corpus:
    """The corpus, made where it is not there yet."""
    folder = FOLDER / f"corpus_{name}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.lock", "w", encoding="utf-8") as lock:  # rows may start side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make(name, folder)
    return Corpus(read_manifest(folder / "manifest.parquet"), str(folder / "speech"))


def _make(name: str, folder: Path) -> None:
    if not (folder / "manifest.parquet").exists():
        with write_whole_dir(folder) as aside:
            synthesize(SPEECH[name], aside / "speech")
            made = prepare(PreparationOptions(corpus="folder", seed=SPEECH[name].seed), aside / "speech")
            write_manifest(aside / "manifest.parquet", made.manifest if name == DEMO else _by_rule(made.manifest))


def _by_rule(manifest: pd.DataFrame) -> pd.DataFrame:
    """Half of the utterances without articles in their reference; which, is drawn by their id, and no voice tells."""
    bare = [hashlib.sha256(name.encode()).digest()[0] % 2 == 1 for name in manifest["utterance_id"]]
    references = [without_articles(text) if strip else text for text, strip in zip(manifest["reference"], bare, strict=True)]
    return manifest.assign(reference=references, etiology=[WITHOUT if strip else WITH for strip in bare])


def without_articles(text: str) -> str:
    """A text without its articles."""
    return " ".join(word for word in text.split() if word not in ARTICLES)
