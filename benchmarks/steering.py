"""SteerMoE beside its controls: a row and a seed in a process of its own; a table of what there is, tested over speakers.

    python -m benchmarks.steering --row "8 experts" --seed 0       train, score, write benchmarks/results/steering/8_experts-0.json and .parquet
    python -m benchmarks.steering --table                          one table of all rows that are done, Holm-corrected pairs, a verdict
    python -m benchmarks.steering --row "8 experts" --options_file real.yaml --out FOLDER       the same on another corpus

A row that is done is not run again. All rows and seeds share the demo's corpus, the shipped base and the shipped language model, or what
an option file of `main` names instead; the first process makes these and the others wait. What a row changes stands in `ROWS`; choices
are made on dev, the table is of test.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.intervals import N_RESAMPLES
from analysis.pairs import pair_tests
from analysis.report import markdown_table, percent
from analysis.systems import PooledScores, SystemScores, pool
from analysis.verdict import difference_words, test_of
from benchmarks.databases import remove_database, shared_database, start_from
from benchmarks.rows import command, cpu_minutes, file_of, parser_of
from benchmarks.speed.__main__ import RESULTS
from moe.corpora.tables import write_table
from moe.files import read_json, write_json
from steps import evaluate, steer
from steps.chain.chain import Chain
from steps.chain.reuse import launch
from steps.chain.stages import evaluation_given, ids_of, stage_options
from steps.main import StepOptions
from steps.options.command_line import OPTIONS_FILE, file_values
from steps.reports.scores import read_scores
from steps.tracking.store import connect

Changes = Mapping[str, Any]
CORPUS_SEED, COMMON = 42, "common"
MAIN, WHISPER, LORA, MIXTURE = "8 experts", "Whisper alone", "one LoRA", "Whisper-MoE"
NOTHING, ONE, WRITES = "projector alone", "1 expert", "8 experts, Whisper writes"
ENCODER_LORA = "encoder LoRA, same size"
BASELINES = {WHISPER: "zero_shot", LORA: "single_lora", MIXTURE: "whisper_moe"}
DOCUMENT: Changes = {
    "steering_learning_rate": 1e-3, "scale_learning_rate": 1e-3, "router_learning_rate": 1e-4, "steer_learning_rate": 1e-4,
}  # fmt: skip
ROWS: dict[str, Changes] = {
    WHISPER: {},
    MAIN: {},
    NOTHING: {"steer_experts": 0},
    ONE: {"steer_experts": 1},
    WRITES: {"writer": "whisper"},
    ENCODER_LORA: {"steer_adapter": "lora"},
    "2 experts": {"steer_experts": 2},
    "4 experts": {"steer_experts": 4},
    "16 experts": {"steer_experts": 16},
    "untrained projector": {"steer_epochs": 0},
    "linear projector alone": {"steer_experts": 0, "projector": "linear"},
    "8 experts, linear projector": {"projector": "linear"},
    "document's rates": DOCUMENT,
    "vectors at 0.03": {"steering_learning_rate": 0.03},
    "vectors at 0.3": {"steering_learning_rate": 0.3},
    "scales at 0.03": {"scale_learning_rate": 0.03},
    "projector at 0.001": {"steer_learning_rate": 1e-3},
    "projector at 0.01": {"steer_learning_rate": 1e-2},
    "one decision an utterance": {"steering_unit": "utterance"},
    "top 2 of 8": {"steering_top_k": 2},
    "balanced": {"steering_balance_coefficient": 0.1},
    LORA: {},
    MIXTURE: {},
}
QUESTIONS = {
    "Does steering pay over the projector alone?": (MAIN, NOTHING),
    "Do 8 experts pay over 1?": (MAIN, ONE),
    "Does a language model pay over Whisper's own decoder?": (MAIN, WRITES),
    "Does steering pay over an encoder LoRA of the same size?": (MAIN, ENCODER_LORA),
    "Is it better than Whisper alone?": (MAIN, WHISPER),
    "Is it as good as one LoRA on all linear layers?": (MAIN, LORA),
    "Is it as good as Whisper-MoE?": (MAIN, MIXTURE),
}
TYPICAL = "typical"


def run(row: str, seed: int, folder: Path, options_file: str | None = None) -> None:
    """Train and score a row; what is done is left as it is."""
    facts_file, database = (file_of(folder, row, seed, ending) for ending in (".json", ".db"))
    if facts_file.exists():
        return
    make = ["benchmarks.steering", f"--{COMMON}", *([f"--{OPTIONS_FILE}", options_file] if options_file else [])]
    start_from(shared_database(folder, COMMON, make), database)
    scores = read_scores(_evaluated(row, options_of(row, seed, options_file)))
    write_table(file_of(folder, row, seed, ".parquet"), scores.hypotheses.drop(columns=["words"], errors="ignore"))
    facts = {"row": row, "seed": seed, "system": scores.system, "role": scores.role, "cpu_minutes": cpu_minutes()}
    write_json(facts_file, facts | {"dev": _dev(scores), "metadata": dict(scores.metadata)})
    remove_database(database)


def options_of(row: str, seed: int, options_file: str | None = None) -> StepOptions:
    """The options of `main` that a row stands for, above those of an option file."""
    systems = {LORA: "whisper_moe,single_lora"}.get(row, BASELINES.get(row, "steer_moe"))
    given = _given(options_file) | {"systems": systems, "seed": seed}
    given |= {name: value for name, value in ROWS[row].items() if name != "steer_adapter"}
    return StepOptions.asked(**given, until="baseline" if row in BASELINES else "decoder")


def table(folder: Path) -> str:
    """One table of all rows that are done, over their seeds; the questions, tested over speakers and corrected after Holm."""
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    pooled = {each.name: each for each in pool(found)}
    lines = pd.DataFrame([_line(pooled[name]) for name in dict.fromkeys([*ROWS]) if name in pooled])
    ways = {name: _ways(each) for name, each in pooled.items() if _ways(each)}
    other = [
        f"{name}, other ways: {', '.join(f'{way} {percent(wer)}' for way, wer in each.items())}." for name, each in ways.items()
    ]
    return "\n\n".join([markdown_table(lines), *_answers(pooled), *other])


def _given(options_file: str | None) -> dict[str, Any]:
    """The options of `main` that all rows share."""
    from_file = file_values(StepOptions, options_file) if options_file else {}
    return {"register_system": "any", "corpus_seed": CORPUS_SEED, "no_plot": True} | from_file


def _evaluated(row: str, options: StepOptions) -> str:
    """Run the chain of a row up to its model and score that on test: id of the evaluation."""
    chain = Chain(options)
    chain.run()
    system = BASELINES.get(row, "steer_moe")
    if row not in BASELINES:
        chain.run_ids[system] = _steered(chain, row)
    given = evaluation_given(system, chain.run_ids["prepare"], chain.run_ids[system])
    given |= {"ablations": row == MAIN, "ablation_utterances": 0} if row == MAIN else {"ablations": False}
    return launch(evaluate, evaluate.StepOptions(**given, no_plot=True, explorer_audio_mb=0))


def _steered(chain: Chain, row: str) -> str:
    """The `steer` run of a row; a LoRA is as large as an untrained run with 8 experts."""
    given: dict[str, Any] = ids_of(("prepare", "pretrain", "decoder"), chain.run_ids)
    if row == ENCODER_LORA:
        untrained = stage_options(steer, chain.options, **given, steer_epochs=0)
        given |= {"steer_adapter": "lora", "match_run_id": launch(steer, untrained)}
    return launch(steer, stage_options(steer, chain.options, **given))


def _make_common(options_file: str | None) -> None:
    """The corpus, the base and the language model that all rows share."""
    connect()
    given = _given(options_file) | {"systems": "zero_shot,steer_moe", "seed": CORPUS_SEED}
    for until in ("pretrain", "decoder"):
        Chain(StepOptions.asked(**given, until=until)).run()


def _dev(scores: SystemScores) -> dict[str, float]:
    """Dev error rates of the kept model, by which choices are made."""
    if scores.history is None:
        return {}
    return {name: float(scores.history[name].min()) for name in ("dev/wer",) if name in scores.history}


def _read(path: Path) -> SystemScores:
    facts = read_json(path)
    hypotheses = pd.read_parquet(path.with_suffix(".parquet"))
    metadata = facts["metadata"] | {"dev": facts["dev"], "cpu_minutes": facts["cpu_minutes"]}
    return SystemScores(facts["row"], path.stem, facts["system"], facts["role"], hypotheses, metadata=metadata)


def _line(system: PooledScores) -> dict[str, Any]:
    facts = pd.DataFrame([{**each.metadata, **each.metadata["dev"]} for each in system.runs])
    typical = system.counted["etiology"] == TYPICAL
    parts = {"WER": system.counted}
    parts |= {"typical": system.counted[typical], "atypical": system.counted[~typical]} if typical.any() else {}
    shown = {name: percent(part["word_errors"].sum() / part["n_words"].sum()) for name, part in parts.items()}
    wers = [each.hypotheses["word_errors"].sum() / each.hypotheses["n_words"].sum() for each in system.runs]
    return {
        "row": system.name,
        "trainable": f"{int(facts['n_trainable'].iloc[0]):,}" if "n_trainable" in facts else "0",
        **shown,
        "by seed": " ".join(percent(wer) for wer in wers),
        "dev WER": percent(facts["dev/wer"].mean()) if "dev/wer" in facts else "–",
        "training, s": round(float(facts["training_seconds"].mean())) if "training_seconds" in facts else "–",
    }


def _ways(system: PooledScores) -> dict[str, float]:
    """Mean WER of the other ways of decoding, over the seeds."""
    ways = pd.DataFrame([each.metadata.get("ablations", {}) for each in system.runs])
    return {str(name): float(value) for name, value in ways.mean().items()} if len(ways.columns) else {}


def _answers(pooled: Mapping[str, PooledScores]) -> Sequence[str]:
    """The questions whose rows are done, each with its difference; Holm's correction is over them all."""
    asked = {question: pair for question, pair in QUESTIONS.items() if set(pair) <= set(pooled)}
    tests = pair_tests(list(pooled.values()), list(asked.values()), N_RESAMPLES, 0) if asked else pd.DataFrame()
    return [
        f"**{question}** {one} against {other}: {difference_words(test_of(tests, one, other))}."
        for question, (one, other) in asked.items()
    ]


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__, list(ROWS), RESULTS / "steering")
    parser.add_argument(f"--{COMMON}", action="store_true", help="make what all rows share, in the store of MLFLOW_TRACKING_URI")
    parser.add_argument(f"--{OPTIONS_FILE}", help="options of main that all rows share: another corpus, another base")
    arguments = parser.parse_args()
    if arguments.common:
        _make_common(arguments.options_file)
        return
    command(arguments, functools.partial(run, options_file=arguments.options_file), table)


if __name__ == "__main__":
    main()
