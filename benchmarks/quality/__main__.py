"""What each choice costs or wins in errors: the chain with one option changed at a time, over seeds, in one table for all corpora.

    python -m benchmarks.quality                                     the synthetic corpus
    python -m benchmarks.quality --only none                         the default and the baselines alone
    python -m benchmarks.quality --only averaging --rows "averaging=ema;one LoRA, same size, averaging=ema"    these rows, in a process of their own
    python -m benchmarks.quality --only averaging --gather true      the table of what such processes have evaluated
    python -m benchmarks.quality --corpus folder --dataset_root PATH --whisper_model BASE --data_percent 25 --only mixing,top_k

Takes every option of `main`; what is given is common to all variants. The base and one LoRA of the default mixture's size, data and
updates stand beside them, and one LoRA more where a change concerns it too. Each evaluation is a run in the tracking store and is taken
over from it in a later call, as is every stage above a variant's change; so a call that was killed goes on where it was. The corpus, its
test set of 162 speakers and the 40 people of their own ways are rendered once. The table, benchmarks/results/quality.md (and .json), is
written after every evaluation and keeps the other corpora; at the end a run of `compare` over all evaluations tests them and gives the verdict.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from tqdm import tqdm

from analysis.report import percent
from analysis.systems import SystemScores
from benchmarks.quality.table import record, rows, wer
from benchmarks.quality.variants import BASE_MODEL, Job, QualityOptions, jobs, lora_given, system_of
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import read
from moe.files import write_json
from moe.options import to_text
from steps import baseline, compare, evaluate, main
from steps.chain.options import BASE, LORA
from steps.chain.reuse import launch
from steps.chain.stages import Chain, evaluation_given, stage_options
from steps.options.command_line import parse
from steps.reports.scores import read_scores
from steps.tracking import artifacts
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
            name, seed, row = job
            if options.gather and not _note(path, job).exists():
                print(f"{name}, seed {seed}: not evaluated yet", flush=True)
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            found.append(_scores(path, job, options.gather))
            if options.rows is None:
                record(path, options, rows(found))
            bar.set_postfix_str(f"{name}, seed {seed}: WER {percent(wer(found[-1]))}")
    if options.rows is not None:
        return "\n".join(f"{one.name}, seed {one.metadata.get('seed')}: WER {percent(wer(one))}" for one in found)
    given = {"evaluate_run_ids": ",".join(one.run_id for one in found), "compare_against": LORA}
    compare_run_id = launch(compare, stage_options(compare, options, **given))
    return record(path, options, rows(found), verdict_of(compare_run_id))


def verdict_of(compare_run_id: str) -> str:
    """What a comparison says in words."""
    report = artifacts.upstream(compare_run_id, "comparison.md").read_text(encoding="utf-8")
    return report.partition("# Comparison")[2].partition("\n## ")[0].strip()


def _scores(path: Path, job: Job, gather: bool) -> SystemScores:
    """The scores of a row, with the WER on dev that its training kept; the run's id is noted for `gather`."""
    name, _, row = job
    note = _note(path, job)
    run_id = read(note)["evaluate_run_id"] if gather else evaluated(name, row)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"row": name, "evaluate_run_id": run_id})
    scores, client = read_scores(run_id), connect().client
    model = client.get_run(client.get_run(run_id).data.params["model_run_id"]).data.metrics
    dev_wer = None if name == BASE_MODEL else model.get("dev/wer_kept")
    return dataclasses.replace(scores, name=name, metadata={**scores.metadata, "dev_wer": dev_wer})


def _note(path: Path, job: Job) -> Path:
    """Where a row's evaluation is noted: a file for its name, seed and options."""
    name, seed, row = job
    said = json.dumps(
        [name, seed, {key: value for key, value in row.as_parameters().items() if key not in ("only", "seeds", "gather")}]
    )
    return path.with_name(f"{path.name}_rows") / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


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
