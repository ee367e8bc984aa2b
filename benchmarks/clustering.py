"""Clustering and gate at scale, on made-up embeddings: time and peak memory of each, in a process of its own.

python -m benchmarks.clustering            a million 64-dim embeddings clustered, 100 000 train a gate
python -m benchmarks.clustering --n_utterances 100000 --algorithm hdbscan
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable

import numpy as np

from benchmarks.memory import resident_peak_mib

N_STYLES, N_DIMS, N_SPEAKERS = 8, 64, 2000
Corpus = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def corpus(n_utterances: int, seed: int = 0) -> Corpus:
    """Embeddings (n, 64) float32, ids, speakers and etiologies: styles, speakers about them, utterances about speakers."""
    rng = np.random.default_rng(seed)
    styles = rng.normal(size=(N_STYLES, N_DIMS)) * 2
    style_of_speaker = rng.integers(N_STYLES, size=N_SPEAKERS)
    profiles = styles[style_of_speaker] + rng.normal(size=(N_SPEAKERS, N_DIMS))
    speaker = rng.integers(N_SPEAKERS, size=n_utterances)
    embeddings = rng.standard_normal((n_utterances, N_DIMS), dtype=np.float32)
    embeddings += profiles[speaker].astype(np.float32)
    ids = np.char.add("utterance-", np.char.zfill(np.arange(n_utterances).astype(str), 8))
    return embeddings, ids, np.char.add("s", speaker.astype(str)), np.char.add("style-", style_of_speaker[speaker].astype(str))


def clustering(n_utterances: int, algorithm: str, unit: str) -> str:
    """Fit on a stratified sample, assign the rest."""
    from sklearn.metrics import adjusted_rand_score

    from moe.clustering.clusters import UtteranceClusters
    from moe.clustering.options import ClusteringOptions

    embeddings, ids, speakers, etiologies = corpus(n_utterances)
    options = ClusteringOptions(clustering_algorithm=algorithm, cluster_unit=unit, num_experts=N_STYLES)
    start = time.perf_counter()
    clusters = UtteranceClusters(options).fit(embeddings, ids.tolist(), speakers.tolist(), etiologies.tolist())
    seconds = time.perf_counter() - start
    agreement = adjusted_rand_score(etiologies, clusters.labels_)
    return f"{seconds:.1f} s, fitted on {clusters.n_fitted_}, {clusters.n_clusters_} clusters, adjusted Rand {agreement:.3f}"


def gate(n_utterances: int) -> str:
    """Train a gate on soft labels made of the styles; one utterance in ten is dev."""
    from moe.routing.gate_training import GateOptions, train_gate

    embeddings, _, _, etiologies = corpus(n_utterances)
    soft = np.eye(N_STYLES)[np.unique(etiologies, return_inverse=True)[1]] * 0.9 + 0.1 / N_STYLES
    dev = np.arange(n_utterances) % 10 == 0
    start = time.perf_counter()
    result = train_gate(embeddings[~dev], soft[~dev], embeddings[dev], soft[dev], GateOptions())
    seconds = time.perf_counter() - start
    return f"{seconds:.1f} s, {len(result.history)} epochs, dev accuracy {result.metrics['dev/accuracy']:.3f}"


def measured(name: str, work: Callable[..., str], *arguments: object) -> None:
    """Run in a fresh process and print what it says, with its peak memory."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(name, work, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name}: ended with exit code {process.exitcode}")


def _run(name: str, work: Callable[..., str], arguments: tuple) -> None:
    said = work(*arguments)
    print(f"{name}: {said}; peak {resident_peak_mib() / 2**10:.2f} GiB", flush=True)


def main() -> None:
    """Read the flags, run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_utterances", type=int, default=1_000_000)
    parser.add_argument("--n_gate", type=int, default=100_000)
    parser.add_argument("--algorithm", default="spectral")
    parser.add_argument("--unit", default="utterance")
    arguments = parser.parse_args()
    measured(
        f"{arguments.algorithm} of {arguments.n_utterances}",
        clustering, arguments.n_utterances, arguments.algorithm, arguments.unit,
    )  # fmt: skip
    measured(f"gate on {arguments.n_gate}", gate, arguments.n_gate)


if __name__ == "__main__":
    main()
