"""Entry point `evaluate`: score one recogniser on the test split, which no other step reads.

Reads a `prepare` run and the model of an `asr` or `baseline` run; writes `hypotheses.parquet`, `scores.json` and `explorer.html`. For a
mixture also the routing ablations: oracle by etiology, by cluster, random, uniform, and each expert alone. Example:
    mlflow run . -e evaluate -P prepare_run_id=ID -P asr_run_id=ID
"""

import dataclasses

from analysis.challenge import PLAIN, RULES
from moe.options import option
from moe.recognition.decoding import DecodingOptions
from moe.systems.whisper_moe.folder import load_model
from moe.training.precision import PrecisionOptions, precision
from steps.inputs.corpus import read_prepared
from steps.inputs.test_set import prepare_test_set, recognise, recognise_ablations
from steps.options.step_options import PlotOptions
from steps.reports.evaluation import Evaluation, log_evaluation
from steps.tracking import artifacts, runs


@dataclasses.dataclass(frozen=True)
class StepOptions(DecodingOptions, PrecisionOptions, PlotOptions):
    """Score a recogniser on the test split."""

    prepare_run_id: str = option(help="run that made the manifest")
    asr_run_id: str | None = option(None, "mixture to score")
    baseline_run_id: str | None = option(None, "baseline to score")
    decoding_top_k: int | None = option(None, "experts mixed in decoding (none: as in training)", low=1)
    scoring: str = option(PLAIN, "rule of a challenge to score by too: sapc1 (WER), sapc2 (CER)", choices=(PLAIN, *RULES))
    ablations: bool = option(True, "for a mixture: score the routing ablations too")
    ablation_utterances: int = option(200, "test utterances that the ablations are decoded on, stratified by etiology (0: all)", low=0)
    explorer_audio_mb: float = option(2.0, "audio inside the error explorer: the worst utterances and a random sample", low=0, high=500)
    seed: int = option(42, "seed of everything drawn", low=0)

    def faults(self) -> list[str]:
        """Exactly one recogniser."""
        if (self.asr_run_id is None) == (self.baseline_run_id is None):
            return ["give exactly one of asr_run_id and baseline_run_id"]
        return []

    @property
    def model_run_id(self) -> str:
        """The run whose model is scored."""
        return self.asr_run_id or self.baseline_run_id


def run(options: StepOptions) -> str:
    """Score the recogniser, log hypotheses and figures, and return the run id."""
    model_dir = artifacts.upstream(options.model_run_id, artifacts.MODEL)
    saved = load_model(model_dir)
    saved.model.use_precision(precision(options))
    name = f"evaluate · {saved.record.system} · seed {saved.record.information.get('seed', options.seed)}"
    with runs.step_run("evaluate", options, name) as step:
        prepared = read_prepared(options.prepare_run_id)
        decoding = options.part(DecodingOptions)
        test_set = prepare_test_set(saved, prepared, model_dir, decoding, options.decoding_top_k, runs.work_dir(step))
        prepared.log_input(step, test_set.rows, "test")
        counted, seconds = recognise(test_set)
        ablated = {}
        if options.ablations and saved.record.n_experts:
            ablated = recognise_ablations(test_set, counted, options.ablation_utterances, options.seed)
        evaluation = Evaluation(test_set, counted, ablated, seconds, options.scoring, options.model_run_id)
        log_evaluation(step, evaluation, options.explorer_audio_mb, options.seed)
    return step.run_id


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
