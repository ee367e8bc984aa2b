"""Entry point `evaluate`: score one recogniser on the test split, which no other step reads.

Reads a `prepare` run and the model of a run that trained one; writes `hypotheses.parquet`, `scores.json` and `explorer.html`. For a
mixture also the routing ablations: oracle by etiology, by cluster, random, uniform, and each expert alone. Example:
    mlflow run . --env-manager local -e evaluate -P prepare_run_id=ID -P model_run_id=ID
"""

import dataclasses

from analysis.challenge import PLAIN, RULES
from moe.audio.voice_activity import SPEECH_THRESHOLD, THRESHOLD_HELP
from moe.corpora.shard_cache import ShardOrderOptions
from moe.options import option
from moe.system import DecodingOptions, read_record
from moe.systems.table import load_system
from moe.training import processes
from moe.training.precision import PrecisionOptions, fastest_device, precision
from moe.training.processes import ProcessOptions
from steps.inputs.corpus import read_prepared
from steps.inputs.test_set import TestSet, prepare_test_set, recognise, recognise_ablations
from steps.options.ask_options import AskOptions, ask_of
from steps.options.step_options import AudioOptions, PlotOptions
from steps.reports.evaluation import Evaluation, log_evaluation
from steps.reports.evaluation_view import evaluate_hypotheses
from steps.reports.peak_memory import begin_peak, peak_mb
from steps.tracking import artifacts, runs
from steps.tracking.lineage import lineage_parameters
from steps.tracking.step_run import StepRun


@dataclasses.dataclass(frozen=True)
class StepOptions(AskOptions, DecodingOptions, PrecisionOptions, ShardOrderOptions, ProcessOptions, AudioOptions, PlotOptions):
    """Score a recogniser on the test split."""

    prepare_run_id: str = option(help="run that made the manifest")
    model_run_id: str = option(help="run whose artifact `model` is scored")
    scoring: str = option(PLAIN, "rule of a challenge to score by too: sapc1 (WER), sapc2 (CER)", choices=(PLAIN, *RULES))
    ablations: bool = option(True, "score the system's other ways of decoding too, for a mixture its routing ablations")
    ablation_utterances: int = option(
        200, "test utterances that the ablations are decoded on, stratified by etiology (0: all)", low=0
    )
    explorer_audio_mb: float = option(
        2.0, "audio inside the error explorer: the worst utterances and a random sample", low=0, high=500
    )
    evaluation_view: bool = option(True, "log hypotheses with WER and CER in MLflow's own evaluation view too; takes seconds")
    speech_threshold: float = option(0.0, f"{THRESHOLD_HELP}; serving and transcribe have {SPEECH_THRESHOLD}", low=0, high=1)
    seed: int = option(42, "seed of everything drawn", low=0)


def run(options: StepOptions) -> str:
    """Score the recogniser, log hypotheses and figures, and return the run id."""
    model_dir = artifacts.upstream(options.model_run_id, artifacts.MODEL)
    prepared, record = read_prepared(options.prepare_run_id, options), read_record(model_dir)
    ask = ask_of(options, record, prepared.rows("test"))

    def work(step: StepRun, options: StepOptions) -> None:
        system = load_system(model_dir)
        system.place(fastest_device(), precision(options))
        own = {"system": record.system, **options.as_parameters()}
        step.log_parameters({"system": own["system"], **lineage_parameters(options.model_run_id, own)})
        decoding, work_dir = options.part(DecodingOptions), runs.work_dir(step)
        threshold, together = options.speech_threshold, options.shards_together
        _score(step, options, prepare_test_set(system, ask, prepared, model_dir, decoding, work_dir, threshold, together))

    name = f"evaluate · {record.system} · seed {record.facts.get('seed', options.seed)}"
    return runs.in_run("evaluate", options, work, name)


def _score(step: StepRun, options: StepOptions, test_set: TestSet) -> None:
    test_set.prepared.log_input(step, test_set.rows, "test")
    begin_peak()
    counted, seconds = recognise(test_set)
    peak = max(processes.gathered(peak_mb()))
    ablated = {}
    if options.ablations and test_set.system.ablations():
        ablated = recognise_ablations(test_set, counted, options.ablation_utterances, options.seed)
    if processes.number():
        return  # all have the hypotheses; the first says what they are worth
    evaluation = Evaluation(test_set, counted, ablated, seconds, options.scoring, options.model_run_id, peak)
    log_evaluation(step, evaluation, options.explorer_audio_mb if options.share_audio else 0.0, options.seed)
    if options.evaluation_view:
        evaluate_hypotheses(step.run_id, counted)


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
