"""What each choice costs or wins in errors: the chain with one option changed at a time, over seeds, in one table for all corpora.

    python -m benchmarks.quality                                     the synthetic corpus
    python -m benchmarks.quality --only none                         the default and the baselines alone
    python -m benchmarks.quality --only averaging --rows "averaging=ema;one LoRA, same size, averaging=ema"    these rows, in a process of their own
    python -m benchmarks.quality --only left_out --seeds 0           each etiology left out of training, and tested
    python -m benchmarks.quality --only averaging --gather true      the table of what such processes have evaluated
    python -m benchmarks.quality --corpus folder --dataset_root PATH --whisper_model BASE --data_percent 25 --only mixing,top_k

Takes every option of `main`; what is given is common to all variants. The base and one LoRA of the default mixture's size, data and
updates stand beside them, and one LoRA more where a change concerns it too. Each evaluation is a run in the tracking store and is taken
over from it in a later call, as is every stage above a variant's change; so a call that was killed goes on where it was. The corpus, its
test set of 162 speakers and the 40 people of their own ways are rendered once. The table, benchmarks/results/quality.md (and .json), is
written after every evaluation and keeps the other corpora; at the end all rows are compared with their LoRA, for the verdict. What a row scored is
kept in benchmarks/results/quality_rows, from which `gather` works on another machine too.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from analysis.comparison import compare
from analysis.report import percent
from analysis.systems import SystemScores
from benchmarks.quality.notes import read_note, write_note
from benchmarks.quality.table import cohort, record, rows, wer
from benchmarks.quality.variants import BASE_MODEL, Job, QualityOptions, jobs, left_out_of, system_of
from benchmarks.speed.__main__ import RESULTS
from moe.options import to_text
from steps import baseline, evaluate, main
from steps.chain.branches import lora_given
from steps.chain.chain import Chain
from steps.chain.options import BASE, LORA
from steps.chain.reuse import launch
from steps.chain.stages import evaluation_given, stage_options
from steps.options.command_line import parse
from steps.reports.scores import read_scores
from steps.tracking.store import connect

IDLE = ("until", "registered_model", "register_system", "systems", "max_group_regression")


def evaluated(name: str, options: QualityOptions) -> str:
    """Run the chain up to a row's system, and score it on the test split: id of the evaluation."""
    system = system_of(name)
    chain = Chain(dataclasses.replace(options, systems=BASE if system == LORA else system, until="baseline"))
    chain.run()
    if system == LORA:
        read = {f"{stage}_run_id": chain.run_ids[stage] for stage in ("prepare", "pretrain")}
        model_run_id = launch(
            baseline, stage_options(baseline, options, **read, **lora_given(options)), title="baseline single_lora"
        )
    else:
        model_run_id = chain.run_ids[system]
    given = evaluation_given(system, chain.run_ids["prepare"], model_run_id)
    return launch(evaluate, stage_options(evaluate, options, **given))


def run(options: QualityOptions, path: Path) -> str:
    """Every row under every seed; returns the table, written to `path`.md after each evaluation, and the verdict."""
    found: list[SystemScores] = []
    with tqdm(jobs(options), desc="quality", unit="evaluation", smoothing=0.1) as bar:
        for job in bar:
            name, seed, _ = job
            scores = read_note(path, job) if options.gather else scored(job)
            if scores is None:
                print(f"{name}, seed {seed}: not evaluated yet", flush=True)
                continue
            write_note(path, job, scores)
            found.append(scores)
            if options.rows is None:
                record(path, options, rows(found))
            bar.set_postfix_str(f"{name}, seed {seed}: WER {percent(wer(scores))}")
    if options.rows is not None:
        return "\n".join(f"{one.name}, seed {one.metadata.get('seed')}: WER {percent(wer(one))}" for one in found)
    return record(path, options, rows(found), verdict_of(found))


def scored(job: Job) -> SystemScores:
    """Train and evaluate a row: its scores, with the WER on dev that its training kept."""
    name, seed, row = job
    print(f"\n{name}, seed {seed}", flush=True)
    run_id = evaluated(name, row)
    scores, client = read_scores(run_id), connect().client
    model = client.get_run(client.get_run(run_id).data.params["model_run_id"]).data.metrics
    dev_wer = None if name == BASE_MODEL else model.get("dev/wer_kept")
    return dataclasses.replace(scores, name=name, metadata={**scores.metadata, "dev_wer": dev_wer})


def verdict_of(found: Sequence[SystemScores]) -> str:
    """What a comparison of all rows says in words; Holm's correction is over the comparisons with one LoRA."""
    whole = [one for one in found if not left_out_of(one.name)]  # the others are scored on some speakers alone
    is_told = len({one.name for one in whole}) > 1 and LORA in {one.system for one in whole}
    usual = [dataclasses.replace(one, hypotheses=cohort(one.hypotheses, is_own=False)) for one in whole]
    return compare(usual, against=[LORA], plots=False).verdict if is_told else ""


def check(options: QualityOptions) -> None:
    """Refuse what would fail later, and what nothing here would use.

    Raises:
        ValueError: all faults of all stages, or the options without effect.
    """
    main.check_stages(options)
    idle = [f"{name}={to_text(getattr(options, name))}" for name in IDLE if options.is_changed(name)]
    if idle:
        raise ValueError(f"{', '.join(idle)}: no effect here; every variant runs to its evaluation, and none is registered")


def command() -> None:
    """Command line."""
    options = parse(QualityOptions)
    check(options)
    print(run(options, RESULTS / "quality"))


if __name__ == "__main__":
    command()
