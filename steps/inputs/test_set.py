"""What `evaluate` decodes: the test split as inputs of one recogniser, its routings, and the hypotheses as a table.

Batches are kept in the step's work folder as they are done, so that an evaluation that was killed goes on with the next one.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.error_rates import count_errors
from analysis.routing import LEARNED
from moe.audio.voice_activity import VoiceActivity
from moe.clustering.clusters import UtteranceClusters
from moe.corpora.leaks import seen_sentences, seen_words
from moe.corpora.shards import reading_order
from moe.corpora.subsets import subset
from moe.corpora.summaries import loudness_of
from moe.recognition.chunks import Chunks, ChunkSet, cut_rows
from moe.recognition.decoding import USUAL, decode, decode_ways
from moe.recognition.hypothesis_store import BatchStore
from moe.routing import ablations
from moe.routing.embeddings import Embedder, embed, read_by_gate
from moe.system import Ask, DecodingOptions, Hypothesis, ReadsManifest, Routes, System, routing_weights
from moe.text.normalisers import normalise
from moe.training import blocks, processes
from moe.training.batches import to_device
from moe.training.read_ahead import fetched_ahead
from steps.inputs.corpus import Prepared
from steps.tracking import artifacts

EMBEDDING_BATCH = 32
FACTS = ("utterance_id", "speaker", "etiology", "severity", "duration_s", "language", "reference")
FURTHER_FACTS = ("sex", "gender", "age", "reference_fluent", "loudness_db")  # where the corpus has them


@dataclasses.dataclass(frozen=True)
class TestSet:
    """What all decodings of one evaluation share.

    Attributes:
        ask: what is asked of the system.
        rows: the test utterances; `chunks` the same cut to the model's window, `dataset` the chunks as inputs.
        clusters: (n_utterances,) the cluster that the fitted clustering gives each; None where there is none.
        gate_probabilities: (n_utterances, E) the gate's probabilities, before top-k; None without experts.
        no_speech: (n_chunks,) whether nobody speaks in a chunk, whose text is then empty; None where that is not asked.
        work_dir: where batches are kept while the run is unfinished.
    """

    __test__ = False  # no class of tests

    system: System
    ask: Ask
    prepared: Prepared
    rows: pd.DataFrame
    chunks: Chunks
    dataset: ChunkSet
    clusters: np.ndarray | None
    gate_probabilities: np.ndarray | None
    decoding: DecodingOptions
    work_dir: Path
    no_speech: np.ndarray | None = None


def prepare_test_set(
    system: System,
    ask: Ask,
    prepared: Prepared,
    model_dir: Path,
    decoding: DecodingOptions,
    work_dir: Path,
    speech_threshold: float = 0.0,
    shards_together: int | None = None,
) -> TestSet:
    """The test split as inputs, with embeddings and clusters where the system routes.

    Args:
        speech_threshold: least probability of speech of a chunk whose text counts; 0: every text does.
        shards_together: shards whose utterances come together in batches; None: all.
    """
    rows = prepared.rows("test")
    prepared.refuse_missing(rows, shards_together=shards_together)
    chunks = cut_rows(rows, prepared.root, system.inputs.window_s)
    dataset, clusters, gate = ChunkSet(chunks, prepared.root, system.inputs, shards_together), None, None
    if isinstance(system, ReadsManifest):
        dataset.extras |= {name: torch.as_tensor(values) for name, values in system.from_manifest(chunks.rows).items()}
    if isinstance(system, Routes):
        rows = rows.assign(loudness_db=_loudness(rows, chunks.owner, dataset))
        found = embed(embedder_of(system), dataset, work_dir / artifacts.EMBEDDINGS, EMBEDDING_BATCH)
        vectors, read = found.select(dataset.utterance_ids), read_by_gate(system.gate_unit, chunks.rows, found)
        dataset.extras["embedding"] = torch.as_tensor(read)
        gate = chunks.pool(system.gate_probabilities(read))
        clusters = _clusters(model_dir / artifacts.CLUSTERS, chunks.pool(vectors), rows)
    no_speech = _no_speech(dataset, speech_threshold) if speech_threshold else None
    return TestSet(system, ask, prepared, rows, chunks, dataset, clusters, gate, decoding, work_dir, no_speech)


def recognise(test_set: TestSet) -> tuple[pd.DataFrame, float]:
    """Counted hypotheses of the test split as the recogniser decodes it, and the seconds of computing that decoding took, resumed or not."""
    store = BatchStore(test_set.work_dir / USUAL)
    test_set.dataset.forget()  # embedding made the features of a system that routes, which the others make in decoding
    found = decode(test_set.system, test_set.dataset, test_set.decoding, test_set.ask, title="test", store=store)
    return count_errors(_table(test_set, _of_utterances(test_set, found))), processes.total([store.seconds])[0]


def recognise_ablations(test_set: TestSet, learned: pd.DataFrame, n_utterances: int, seed: int) -> dict[str, pd.DataFrame]:
    """Counted hypotheses of some test utterances in every other way of decoding, and `learned`, the usual one, of the same utterances.

    Args:
        n_utterances: how many, stratified by etiology and the same for every model of a corpus; 0 or too many: all. Etiologies that
            training had none of are left out where others are there: they have no oracle.
    """
    system, is_known = test_set.system, np.ones(len(test_set.rows), bool)
    if isinstance(system, Routes) and test_set.rows["etiology"].isin(system.expert_of_etiology).any():
        is_known = test_set.rows["etiology"].isin(system.expert_of_etiology).to_numpy()
    chosen = is_known.copy()
    chosen[is_known] = _sample(test_set.rows[is_known], n_utterances, seed)  # (n_utterances,) bool
    of_chunks = np.flatnonzero(chosen[test_set.chunks.owner])
    dataset, store = test_set.dataset.select(of_chunks), BatchStore(test_set.work_dir / "ablations")
    decoded = decode_ways(system, dataset, test_set.decoding, system.ablations(), title="test, other ways", store=store)
    if isinstance(system, Routes):
        chunks = test_set.chunks.rows.iloc[of_chunks]
        clusters = None if test_set.clusters is None else test_set.clusters[test_set.chunks.owner[of_chunks]]
        for name, experts in ablations.choices(chunks, system.n_experts, system.expert_of_etiology, clusters, seed).items():
            decoded[name] = ablations.looked_up(decoded, experts)
    part = _part(test_set, chosen, of_chunks)
    joined = {name: _of_utterances(part, found) for name, found in decoded.items()}
    return {LEARNED: learned[chosen].reset_index(drop=True)} | {
        name: count_errors(_table(part, found)) for name, found in joined.items()
    }


def embedder_of(system: Routes) -> Embedder:
    """What a system's gate reads of a batch, wherever the batch is."""
    device = next(system.module.parameters()).device
    return lambda batch: system.embed(to_device(batch, device))


def _clusters(folder: Path, vectors: np.ndarray, rows: pd.DataFrame) -> np.ndarray | None:
    return UtteranceClusters.load(folder).assign(vectors, rows["speaker"].to_numpy())[0] if folder.is_dir() else None


def _sample(rows: pd.DataFrame, n_utterances: int, seed: int) -> np.ndarray:
    if not 0 < n_utterances < len(rows):
        return np.ones(len(rows), bool)
    return rows["utterance_id"].isin(set(subset(rows, 100 * n_utterances / len(rows), seed))).to_numpy()


def _part(test_set: TestSet, chosen: np.ndarray, of_chunks: np.ndarray) -> TestSet:
    """The test set of some of its utterances."""
    owner = (np.cumsum(chosen) - 1)[test_set.chunks.owner[of_chunks]]
    clusters, gate = (None if each is None else each[chosen] for each in (test_set.clusters, test_set.gate_probabilities))
    chunks, rows = Chunks(test_set.chunks.rows.iloc[of_chunks], owner), test_set.rows[chosen].reset_index(drop=True)
    no_speech = None if test_set.no_speech is None else test_set.no_speech[of_chunks]
    return dataclasses.replace(
        test_set, rows=rows, chunks=chunks, clusters=clusters, gate_probabilities=gate, no_speech=no_speech
    )


def _no_speech(dataset: ChunkSet, threshold: float) -> np.ndarray:
    voice_activity, own = VoiceActivity(threshold), np.array(blocks.dealt(len(dataset)), int)
    order, found = reading_order(dataset.rows.table.iloc[own]), np.zeros(len(own), bool)
    with fetched_ahead(dataset, own[order, None]) as reached:
        for number, place in enumerate(order):
            reached(number)
            found[place] = not voice_activity.is_speech(dataset.waveform(int(own[place])))
    return np.array(blocks.in_order(found.tolist()))


def _loudness(rows: pd.DataFrame, owner: np.ndarray, dataset: ChunkSet) -> list[float]:
    """Loudness of every utterance; each process reads its share, as it lies in the shards."""
    own = np.array(blocks.dealt(len(rows)), int)
    order, found = reading_order(rows.iloc[own]), np.zeros(len(own))
    with fetched_ahead(dataset, np.searchsorted(owner, own[order])[:, None]) as reached:
        found[order] = loudness_of(rows.iloc[own[order]], dataset.root, reached)
    return blocks.in_order(found.tolist())


def _of_utterances(test_set: TestSet, found: list[Hypothesis]) -> list[Hypothesis]:
    """Hypotheses of chunks as those of utterances; without the text of chunks in which nobody speaks, where that is asked."""
    chunks, silent, ids = test_set.chunks, test_set.no_speech, test_set.rows["utterance_id"]
    if silent is None:
        return chunks.join(found, ids)
    kept = [each.without_text() if nobody else each for each, nobody in zip(found, silent, strict=True)]
    n_spoken = np.bincount(chunks.owner, ~silent, minlength=len(ids))
    return [
        dataclasses.replace(each, details={**each.details, "no_speech": n == 0})
        for each, n in zip(chunks.join(kept, ids), n_spoken.tolist(), strict=True)
    ]


def _table(test_set: TestSet, hypotheses: list[Hypothesis]) -> pd.DataFrame:
    """One row per test utterance: reference and hypothesis by the corpus's normaliser, who spoke, how it was routed, how sure it is."""
    manifest = test_set.prepared.manifest
    table = test_set.rows[[*FACTS, *(name for name in FURTHER_FACTS if name in test_set.rows)]].reset_index(drop=True)
    for name, seen in (("sentence_seen", seen_sentences(manifest)), ("words_seen", seen_words(manifest))):
        table[name] = seen.set_axis(manifest["utterance_id"]).loc[table["utterance_id"]].to_numpy()
    table["hypothesis"] = [normalise(test_set.prepared.normaliser, hypothesis.text) for hypothesis in hypotheses]
    table["mean_logprob"] = [hypothesis.mean_logprob for hypothesis in hypotheses]
    table["n_tokens"] = [hypothesis.n_tokens for hypothesis in hypotheses]
    table["error"] = None
    table = table.join(pd.DataFrame([dict(hypothesis.details) for hypothesis in hypotheses], index=table.index))
    gate = test_set.gate_probabilities
    if gate is not None:
        weights = routing_weights(hypotheses)  # (N, E)
        totals = weights.sum(1, keepdims=True)  # below 1 where the gate's probabilities scale the experts, 0 without any
        weights = np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)
        table = table.join(_numbered("weight", weights)).join(_numbered("probability", gate))
        table["expert"] = weights.argmax(1)
        if test_set.clusters is not None:
            table["cluster"] = test_set.clusters
    return table


def _numbered(name: str, values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[f"{name}_{expert}" for expert in range(values.shape[1])])
