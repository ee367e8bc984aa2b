"""Entry point `synthesize`: make the synthetic corpus. Reads nothing; `prepare` reads its artifact `corpus`.

What is logged says SYNTHETIC wherever it is shown: examples to listen to, one sentence in every style as a picture, statistics.
"""

import dataclasses
import tempfile
from pathlib import Path

import pandas as pd
import soundfile
from matplotlib.figure import Figure
from transformers import WhisperFeatureExtractor

from analysis.groups import several
from analysis.plots.corpus import amounts_figure, durations_figure, spectrograms_figure
from moe.files import file_digest
from moe.synthesis.corpus import NOTE, SynthesisOptions, SynthesisSummary, synthesize
from moe.synthesis.effects import SAMPLE_RATE
from moe.synthesis.grammar import GRAMMARS_PATH
from moe.synthesis.planning import plan
from moe.synthesis.rendering import Rendering, render
from moe.systems.whisper.features import log_mel
from steps.options.step_options import PlotOptions
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

FRAME_S = 0.01
FOOT = "synthetic speech (espeak-ng), simulated styles"


@dataclasses.dataclass(frozen=True)
class StepOptions(SynthesisOptions, PlotOptions):
    """Make the synthetic corpus: typical speech and simulated atypical styles, spoken by espeak-ng."""

    not_in_fingerprint = frozenset({"n_workers"})

    def data_digests(self) -> dict[str, str]:
        """The word lists, which are data and not a module."""
        return {GRAMMARS_PATH.name: file_digest(GRAMMARS_PATH)}


def run(options: StepOptions) -> str:
    """Make the corpus, log it and return the run id."""
    name = f"synthesize · {options.purpose} · {options.synthetic_language} · seed {options.seed}"
    with runs.step_run("synthesize", options, name) as step, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "corpus"
        summary = synthesize(options, folder)
        manifest = pd.read_csv(folder / "manifest.csv")
        step.log_folder(folder, artifacts.CORPUS)
        step.log_metrics({name: value for name, value in dataclasses.asdict(summary).items() if name != "digest"})
        step.set_tags({"moe.synthetic": "true", "moe.corpus_digest": summary.digest})
        statistics = corpus_statistics(manifest)
        step.log_table(statistics, "tables/statistics.json")
        sentence, examples = styles_side_by_side(options, manifest)
        _log_examples(step, examples, Path(temporary))
        if step.plots:
            step.log_figure(durations_figure(manifest, FOOT), "plots/durations.png")
        if step.plots and several(manifest):
            step.log_figure(amounts_figure(manifest, FOOT), "plots/amounts.png")
            step.log_figure(_pictured(sentence, examples), "plots/styles.png")
        step.describe(description(options, summary, statistics, sentence))
    return step.run_id


def corpus_statistics(manifest: pd.DataFrame) -> pd.DataFrame:
    """Speakers, utterances, distinct sentences, minutes and share of seen sentences by split and etiology."""
    groups = manifest.groupby(["split", "etiology"], sort=True)
    table = groups.agg(
        n_speakers=("speaker", "nunique"),
        n_utterances=("utterance_id", "size"),
        n_sentences=("transcript", "nunique"),
        minutes=("duration_s", lambda seconds: round(seconds.sum() / 60, 2)),
        longest_s=("duration_s", "max"),
        seen_share=("sentence_seen", "mean"),
    )
    return table.reset_index().round(3)


def styles_side_by_side(options: SynthesisOptions, manifest: pd.DataFrame) -> tuple[str, dict[str, Rendering]]:
    """One sentence of the corpus, the longest, said by the first speaker of each style."""
    sentence = max(sorted(manifest["transcript"].unique()), key=len)
    first = {each.speaker.style: each.speaker for each in reversed(plan(options))}
    return sentence, {style: render(first[style], sentence, "example") for style in options.style_names}


def _pictured(sentence: str, examples: dict[str, Rendering]) -> Figure:
    extractor = WhisperFeatureExtractor()
    mels = [log_mel(example.samples, extractor) for example in examples.values()]
    titles = [f"{style}, {example.duration_s:.1f} s" for style, example in examples.items()]
    return spectrograms_figure(mels, titles, FRAME_S, f"SYNTHETIC “{sentence}” in each style", FOOT)


def _log_examples(step: StepRun, examples: dict[str, Rendering], folder: Path) -> None:
    for style, example in examples.items():
        path = folder / f"synthetic_{style}.wav"
        soundfile.write(path, example.samples, SAMPLE_RATE, subtype="PCM_16")
        step.log_file(path, "examples")


def description(options: SynthesisOptions, summary: SynthesisSummary, statistics: pd.DataFrame, sentence: str) -> str:
    """What the run made, in Markdown."""
    made = (
        f"Made {summary.n_utterances} utterances ({summary.duration_h:.2f} h) of {summary.n_sentences} sentences by "
        f"{summary.n_speakers} synthetic speakers, language `{options.synthetic_language}`, seed {options.seed}. "
        f"{summary.n_redrawn} renderings were longer than {options.synthetic_max_s:g} s and were drawn again; none was dropped."
    )
    lines = [
        f"SYNTHETIC speech: {made}",
        "",
        NOTE + " **Results on them say nothing about real speakers or patients.**",
        "",
        f"Nothing was read. Corpus digest `{summary.digest[:16]}`. `examples/` holds “{sentence}” in each style, to listen to.",
        "",
        _markdown(statistics),
    ]
    return "\n".join(lines)


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
