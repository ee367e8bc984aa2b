"""What each choice costs or wins in errors: the chain with one option changed at a time, over seeds, in one table for all corpora.

    python -m benchmarks.quality                                     the synthetic corpus
    python -m benchmarks.quality --only none                         the default and the baselines alone
    python -m benchmarks.quality --corpus folder --dataset_root PATH --whisper_model BASE --data_percent 25 --only mixing,top_k

Takes every option of `main`; what is given is common to all variants. The base and one LoRA of the default mixture's size, data and
updates stand beside them. Each evaluation is a run in the tracking store and is taken over from it in a later call, as is every stage above
a variant's change; so a call that was killed goes on where it was. The table, benchmarks/results/quality.md (and .json), is written after
every evaluation and keeps the other corpora; at the end a run of `compare` over all evaluations tests them and gives the verdict.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from analysis.error_rates import rates_by
from analysis.report import markdown_table, percent, percent_interval
from analysis.significance import speaker_difference
from analysis.systems import PooledScores, SystemScores, counted, pool
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import read, write_both
from moe.clustering.options import ALGORITHMS
from moe.files import read_json
from moe.options import NONE, option, to_text
from steps import compare, evaluate, main
from steps.chain.reuse import launch
from steps.chain.stages import Chain, evaluation_given, n_experts, stage_options
from steps.options.command_line import parse
from steps.reports.scores import read_scores
from steps.tracking import artifacts

CHANGES: dict[str, tuple[Any, ...]] = {
    "clustering_algorithm": ALGORITHMS,
    "shared_expert": (True, False),
    "experts_init": ("zero", "shared"),
    "skip_pretraining": (False, True),
    "top_k": (1, 2, 4, None),  # None: all experts
    "mixing": ("delta", "loss"),
    "balance_coefficient": (0.01, 0.0),
    "gate_layer": ("0", "1", "2", "3", "last"),
    "audio_context": ("bucketed", "full"),
}
DEFAULT, BASE_MODEL, ONE_LORA = "as given", "base model", "one LoRA, same size"
BASELINES = {BASE_MODEL: "zero_shot", ONE_LORA: "single_lora"}
IDLE = ("until", "ablations", "ablation_utterances", "registered_model", "register_system", "systems", "max_group_regression")
COSTS = ("gating_accuracy", "training_seconds", "seconds")  # means over the seeds; training is the last stage's
Job = tuple[str, int, "QualityOptions"]  # variant, seed, options of the chain


@dataclasses.dataclass(frozen=True)
class QualityOptions(main.StepOptions):
    """Compare variants of the mixture; every option of `main` is common to all."""

    seeds: str = option("0,1,2", "seeds of each variant, comma list; the corpus keeps one seed")
    only: str = option(
        "all",
        f"options whose values are compared, comma list out of {', '.join(CHANGES)}; or none: the default and the baselines",
    )

    def faults(self) -> list[str]:
        """Also: seeds are whole numbers, the changes are known, the base is one base for all."""
        found = (
            [f"seeds={self.seeds}: must be whole numbers, comma list"] if not all(map(str.isdigit, _parts(self.seeds))) else []
        )
        unknown = [name for name in self.changed if name not in CHANGES]
        found += [f"only={self.only}: must be all, none or out of {', '.join(CHANGES)}"] if unknown else []
        if self.init_from is not None:
            found.append(
                f"init_from={self.init_from}: make it once, by main --until pretrain --export_dir BASE, and name it as whisper_model"
            )
        return super().faults() + found

    @property
    def changed(self) -> list[str]:
        """Names of the options whose values are compared."""
        return list(CHANGES) if self.only == "all" else [] if self.only == NONE else _parts(self.only)

    @property
    def corpus_name(self) -> str:
        """What the table calls the corpus."""
        return Path(self.dataset_root).name if self.dataset_root else self.corpus


def variants(options: QualityOptions) -> dict[str, QualityOptions]:
    """Each variant's options by name: those given, then one option changed at a time."""
    found = {DEFAULT: options}
    for name in options.changed:
        for value in CHANGES[name]:
            shown, value = ("all", n_experts(options)) if value is None else (value, value)
            variant = _changed(options, name, value) if _can_have(options, name, value) else options
            if variant not in found.values():
                found[f"{name}={to_text(shown)}"] = variant
    return found


def jobs(options: QualityOptions) -> list[Job]:
    """Every system under the first seed, then under the next: what there is of a table can be read early. The base has no seed."""
    corpus_seed = options.seed if options.corpus_seed is None else options.corpus_seed
    common: dict[str, Any] = {"corpus_seed": corpus_seed, "ablations": False}
    found, first = variants(options), int(_parts(options.seeds)[0])
    return [
        (name, seed, dataclasses.replace(variant, seed=seed, **common))
        for seed in map(int, _parts(options.seeds))
        for name, variant in {DEFAULT: options, **dict.fromkeys(BASELINES, options), **found}.items()
        if name != BASE_MODEL or seed == first
    ]


SYSTEMS_OF = {"whisper_moe": "whisper_moe", "single_lora": "whisper_moe,single_lora", "zero_shot": "zero_shot"}


def evaluated(name: str, options: QualityOptions) -> str:
    """Run the chain up to the mixture, and beside it to a baseline of that name; score it on the test split: id of the evaluation."""
    system = BASELINES.get(name, "whisper_moe")
    chain = Chain(dataclasses.replace(options, systems=SYSTEMS_OF[system], until="baseline"))
    chain.run()
    given = evaluation_given(system, chain.run_ids["prepare"], chain.run_ids[system])
    return launch(evaluate, stage_options(evaluate, options, **given))


def run(options: QualityOptions, path: Path) -> str:
    """Every system under every seed; returns the table, written to `path`.md after each evaluation, and the verdict."""
    todo, found = jobs(options), []
    with tqdm(todo, desc="quality", unit="evaluation", smoothing=0.1) as bar:
        for name, seed, variant in bar:
            print(f"\n{name}, seed {seed}", flush=True)
            found.append(dataclasses.replace(read_scores(evaluated(name, variant)), name=name))
            record(path, options, rows(found))
            bar.set_postfix_str(f"{name}, seed {seed}: WER {percent(_wer(found[-1]))}")
    compare_run_id = launch(compare, stage_options(compare, options, evaluate_run_ids=",".join(one.run_id for one in found)))
    return record(path, options, rows(found), verdict_of(compare_run_id))


def verdict_of(compare_run_id: str) -> str:
    """What a comparison says in words."""
    report = artifacts.upstream(compare_run_id, "comparison.md").read_text(encoding="utf-8")
    return report.partition("# Comparison")[2].partition("\n## ")[0].strip()


def rows(found: Sequence[SystemScores]) -> list[dict[str, Any]]:
    """One row per system: rates pooled over its seeds, and the differences to the default and to one LoRA over the seeds that both have."""
    return [_row(system, {name: _over_seeds_of(system, found, name) for name in (DEFAULT, ONE_LORA)}) for system in pool(found)]


def record(path: Path, options: QualityOptions, found: list[dict[str, Any]], verdict: str = "") -> str:
    """Put a corpus's rows in the file in place of its earlier ones; returns the whole table as Markdown."""
    changed = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    given = {name: getattr(options, name) for name in sorted(changed - {"dataset_root", "whisper_model", "only", "force"})}
    corpora = read(path.with_suffix(".json")) | {options.corpus_name: {"options": given, "rows": found, "verdict": verdict}}
    return write_both(path, markdown(corpora), corpora)


def markdown(corpora: dict[str, dict[str, Any]]) -> str:
    """The table of all corpora, and the options that were not the defaults."""
    lines = pd.DataFrame([_shown(name, row) for name, corpus in corpora.items() for row in corpus["rows"]])
    notes = [
        f"- {name}: {', '.join(f'{key} {value}' for key, value in one['options'].items()) or 'defaults'}"
        for name, one in corpora.items()
    ]
    verdicts = [f"## {name}\n\n{one['verdict']}\n" for name, one in corpora.items() if one.get("verdict")]
    how = "WER on the test split, 95 % intervals by bootstrap over speakers; differences in points over the same speakers and seeds, each p by itself."
    return (
        "\n".join(["# What each choice costs", "", how, "", markdown_table(lines), *verdicts, "## Options given", "", *notes])
        + "\n"
    )


def _changed(options: QualityOptions, name: str, value: Any) -> QualityOptions:
    """One option changed, and what it cannot be without: as many epochs and experts with no pretraining, a shared adapter to start from."""
    along = {
        ("skip_pretraining", True): {"num_experts": n_experts(options), "asr_epochs": options.expert_epochs + options.asr_epochs},
        ("experts_init", "shared"): {"shared_epochs": options.shared_epochs or max(1, options.expert_epochs // 3)},
    }
    return dataclasses.replace(options, **{name: value}, **along.get((name, value), {}))


def _over_seeds_of(system: PooledScores, found: Sequence[SystemScores], name: str) -> tuple[PooledScores, PooledScores] | None:
    """A system and another by name, both over the seeds that they share; None where there is none."""
    seeds = {one.metadata.get("seed") for one in system.runs} & {one.metadata.get("seed") for one in found if one.name == name}
    if not seeds or system.name == name or system.name == BASE_MODEL:
        return None
    ours = [one for one in system.runs if one.metadata.get("seed") in seeds]
    return pool(ours)[0], pool([one for one in found if one.name == name and one.metadata.get("seed") in seeds])[0]


def _row(system: PooledScores, pairs: Mapping[str, tuple[PooledScores, PooledScores] | None]) -> dict[str, Any]:
    rates = rates_by(system.counted).iloc[0]
    costs = pd.DataFrame([{name: one.metadata.get(name) for name in COSTS} for one in system.runs], dtype=float).mean()
    return {
        "variant": system.name,
        "wer": [float(rates[name]) for name in ("wer", "low", "high")],
        "seeds": {str(one.metadata.get("seed")): _wer(one) for one in system.runs},
        "against": {name: _difference(*pair) for name, pair in pairs.items() if pair},
        **{name: None if costs.isna()[name] else float(costs[name]) for name in COSTS},
    }


def _difference(system: PooledScores, other: PooledScores) -> list[float]:
    found = speaker_difference(system.counted, other.counted)
    return [found.value, found.low, found.high, found.p_value]


def _shown(corpus: str, row: dict[str, Any]) -> dict[str, Any]:
    wers = list(row["seeds"].values())
    return {
        "corpus": corpus,
        "variant": row["variant"],
        "WER": percent_interval(*row["wer"]),
        "seeds": f"{len(wers)}: {100 * min(wers):.1f}–{100 * max(wers):.1f} %",
        "against the default": _points(row["against"].get(DEFAULT)),
        "against one LoRA": _points(row["against"].get(ONE_LORA)),
        "gating accuracy": percent(row["gating_accuracy"]),
        "last stage, s": row["training_seconds"],
        "decoding, s": row["seconds"],
    }


def _points(difference: list[float] | None) -> str:
    if difference is None:
        return "–"
    value, low, high, p_value = difference
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), p {p_value:.2g}"


def _wer(system: SystemScores) -> float:
    table = counted(system)
    return float(table["word_errors"].sum() / max(1, table["n_words"].sum()))


def _can_have(options: QualityOptions, name: str, value: Any) -> bool:
    """A shared start leaves an epoch to the experts; of a base in a folder it is known whether it has the layer below its last."""
    config = Path(options.whisper_model) / "config.json"
    if name == "gate_layer" and value != "last" and config.exists():
        return int(value) < read_json(config)["encoder_layers"]
    return options.expert_epochs > 1 or (name, value) != ("experts_init", "shared")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def check(options: QualityOptions) -> None:
    """Refuse what would fail later, and what nothing here would use.

    Raises:
        ValueError: all faults of all stages, or the options without effect.
    """
    main.check_stages(options)
    idle = [f"{name}={to_text(getattr(options, name))}" for name in IDLE if options.is_changed(name)]
    if idle:
        raise ValueError(
            f"{', '.join(idle)}: no effect here; every variant runs to its evaluation, without ablations, and none is registered"
        )


def command() -> None:
    """Command line."""
    options = parse(QualityOptions)
    check(options)
    print(run(options, RESULTS / "quality"))


if __name__ == "__main__":
    command()
