"""The CTC beside its variants: a row and a seed in a process of its own, with a store of its own; a table of what there is.

    python -m benchmarks.ctc --row ne --seed 0         train, score, write benchmarks/results/ctc/ne-0.json and .parquet
    python -m benchmarks.ctc --table                   the table of all rows that are done

A row that is done is not run again. All rows of a language share one corpus, which the first process makes while others wait. `ne` is what `make demo-ne` runs; the rows `ne/…` train half
as long, each with one thing changed, the first of them decoded greedily and with beams. The rows `en/…` start from the shipped base on the
demo's corpus; there is none with an adapter, since its outputs of 80 ms are too few for the characters of most utterances there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.error_rates import count_errors, rates_by
from analysis.report import markdown_table, percent, percent_interval
from benchmarks.databases import remove_database, shared_database, start_from
from benchmarks.rows import command, cpu_minutes, file_of, parser_of
from benchmarks.speed.__main__ import RESULTS
from moe.corpora.tables import write_table
from moe.files import read_json, write_json
from moe.systems.wav2vec2_ctc.beams import missing_extra
from steps import ctc, evaluate
from steps.chain.chain import Chain
from steps.chain.reuse import launch
from steps.chain.stages import evaluation_given, stage_options
from steps.main import StepOptions
from steps.options.command_line import file_values
from steps.tracking import artifacts
from steps.tracking.store import connect

Changes = Mapping[str, Any]
CORPUS_SEED, COMMON, LANGUAGES = 42, "common", ("en", "ne")
HALF: Changes = {"ctc_epochs": 4}
DOCUMENT: Changes = {
    "attention_dropout": 0.1, "hidden_dropout": 0.1, "feat_proj_dropout": 0.1, "conformer_conv_dropout": 0.1, "final_dropout": 0.1,
    "mask_time_prob": 0.05, "layerdrop": 0.1,
}  # fmt: skip
WHISPER: Changes = {
    "systems": "zero_shot", "init_from": "scratch", "tokenizer": "bpe", "alignments": True, "pretrain_updates": 1200,
}  # fmt: skip
LORA: Changes = {"ctc_train": "lora", "lora_r": 32}
ENGLISH: Changes = {"ctc_epochs": 4, "no_plot": True}
ROWS: dict[str, Changes] = {
    "ne": {},
    "ne/40 ms": {**HALF, "ctc_lm_order": 0 if missing_extra() else 5},  # beams only where their extra is installed
    "ne/adapter": {**HALF, "ctc_frame_ms": 20, "add_adapter": True},
    "ne/20 ms": {**HALF, "ctc_frame_ms": 20},
    "ne/document's regularisation": {**HALF, **DOCUMENT},
    "ne/Whisper": WHISPER,
    "en/all": {**ENGLISH, "ctc_train": "all"},
    "en/head": {**ENGLISH, "ctc_train": "head"},
    "en/lora": {**ENGLISH, **LORA},
    "en/mixture": {**ENGLISH, "ctc_train": "lora", "ctc_experts": 6, "lora_r": 4, "shared_r": 8},
}
BEAMS = 16
GROUPS = ("seen sentences", "new sentences", "new words")


def run(row: str, seed: int, folder: Path) -> None:
    """Train and score a row; what is done is left as it is."""
    facts_file, database = (file_of(folder, row, seed, ending) for ending in (".json", ".db"))
    if facts_file.exists():
        return
    common = [f"--{COMMON}", row[:2]]
    start_from(shared_database(folder, f"{COMMON}-{row[:2]}", ["benchmarks.ctc", *common]), database)
    chain = _chain(row, seed)
    found = _scored(chain, 1)
    if chain.options.ctc_lm_order:
        found = pd.concat([found.assign(search="greedy"), _scored(chain, BEAMS).assign(search="beams")])
    write_table(file_of(folder, row, seed, ".parquet"), found)
    facts = read_json(artifacts.upstream(chain.run_ids["system"], artifacts.MODEL) / "model.json")["facts"]
    write_json(facts_file, {"row": row, "seed": seed, "cpu_minutes": cpu_minutes(), **facts})
    remove_database(database)


def table(folder: Path) -> str:
    """All rows that are done, over their seeds: CER and WER by what of a test utterance was in train."""
    done: dict[tuple[str, str], list[tuple[dict[str, Any], pd.DataFrame]]] = {}
    for path in sorted(folder.glob("*.json")):
        facts, found = read_json(path), pd.read_parquet(path.with_suffix(".parquet"))
        for search, part in found.groupby("search") if "search" in found else [("greedy", found)]:
            done.setdefault((facts["row"], str(search)), []).append((facts, part))
    order = {name: number for number, name in enumerate(ROWS)}
    rows = [_shown(*name, done[name]) for name in sorted(done, key=lambda name: (order[name[0]], name[1] == "beams"))]
    return markdown_table(pd.DataFrame(rows))


def options_of(row: str, seed: int, last: str | None = None) -> StepOptions:
    """The options of `main` that a row stands for, up to its model or to the stage `last`."""
    preset = file_values(StepOptions, "presets/nepali.yaml") if row.startswith("ne") else {"systems": "wav2vec2_ctc"}
    given = {**preset, "register_system": "any", "seed": seed, "corpus_seed": CORPUS_SEED, **ROWS[row]}
    until = "ctc"
    if given["systems"] == "zero_shot":
        own = ("ctc_epochs", "averaging")  # of the preset, which a base model does not read
        given, until = {name: value for name, value in given.items() if name not in own}, "baseline"
    elif given.get("ctc_experts", 1) > 1:
        given, until = given | {"systems": "whisper_moe,wav2vec2_ctc"}, "cluster"
    return StepOptions.asked(**given, until=last or until)


def _chain(row: str, seed: int) -> Chain:
    """The chain of a row, run up to its model."""
    chain = Chain(options_of(row, seed))
    chain.run()
    if "cluster" in chain.run_ids:
        ids = {f"{name}_run_id": chain.run_ids[name] for name in ("prepare", "cluster")}
        chain.run_ids["wav2vec2_ctc"] = launch(ctc, stage_options(ctc, chain.options, **ids))
    chain.run_ids["system"] = chain.run_ids.get("wav2vec2_ctc") or chain.run_ids["zero_shot"]
    return chain


def _scored(chain: Chain, beam_size: int) -> pd.DataFrame:
    """Counted hypotheses of the test split, with the group of each utterance."""
    system = "wav2vec2_ctc" if "wav2vec2_ctc" in chain.run_ids else "zero_shot"
    given = evaluation_given(system, chain.run_ids["prepare"], chain.run_ids["system"])
    options = evaluate.StepOptions(**given, beam_size=beam_size, ablations=False, no_plot=True, explorer_audio_mb=0)
    counted = count_errors(pd.read_parquet(artifacts.upstream(launch(evaluate, options), artifacts.HYPOTHESES)))
    new_words, seen = ~counted["words_seen"], counted["sentence_seen"]
    groups = [GROUPS[2] if new else GROUPS[0] if same else GROUPS[1] for new, same in zip(new_words, seen, strict=True)]
    return counted.drop(columns="words", errors="ignore").assign(novelty=groups)


def _shown(row: str, search: str, done: list[tuple[dict[str, Any], pd.DataFrame]]) -> dict[str, Any]:
    """A line of the table; intervals are over the speakers, who are the same under every seed."""
    tables = [part for _, part in done]
    facts = pd.DataFrame([each for each, _ in done])
    pooled = pd.concat(tables, ignore_index=True)
    pooled["utterance_id"] += "#" + pooled.groupby("utterance_id").cumcount().astype(str)
    overall, by_group = rates_by(pooled).iloc[0], rates_by(pooled, "novelty").set_index("group")
    seeds = [float(rates_by(part, n_resamples=1).iloc[0]["wer"]) for part in tables]
    return {
        "row": row,
        "search": search,
        "seeds": len(done),
        "trainable": f"{int(facts['n_trainable'].iloc[0]):,} of {int(facts['n_total'].iloc[0]):,}",
        "WER": percent_interval(overall["wer"], overall["low"], overall["high"]),
        "WER by seed": f"{percent(min(seeds))}–{percent(max(seeds))}",
        "CER": percent_interval(overall["cer"], overall["cer_low"], overall["cer_high"]),
        **{f"CER, {name}": _cer(by_group, name) for name in GROUPS},
        "grapheme CER": percent(overall["grapheme_cer"]),
        "CPU minutes": round(float(facts["cpu_minutes"].mean()), 1),
    }


def _cer(by_group: pd.DataFrame, name: str) -> str:
    if name not in by_group.index:
        return "–"
    found = by_group.loc[name]
    return percent_interval(found["cer"], found["cer_low"], found["cer_high"])


def _make_common(language: str) -> None:
    """The corpus that all rows of a language share."""
    connect()
    first = next(row for row in ROWS if row.startswith(language))
    Chain(options_of(first, CORPUS_SEED, "prepare")).run()


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__, list(ROWS), RESULTS / "ctc")
    parser.add_argument(f"--{COMMON}", choices=LANGUAGES, help="make what all rows share, in the store of MLFLOW_TRACKING_URI")
    arguments = parser.parse_args()
    if arguments.common:
        _make_common(arguments.common)
        return
    command(arguments, run, table)


if __name__ == "__main__":
    main()
