"""The table of what has been measured: error rates by row and token, and the paired tests of the questions."""

from typing import Any

import pandas as pd

from analysis.comparison import compare
from analysis.report import markdown_table, percent
from analysis.significance import holm
from analysis.systems import SystemScores
from benchmarks.domain_tokens.corpora import DEMO, FOLDER, RULE
from benchmarks.domain_tokens.measuring import ASKS
from benchmarks.speed.__main__ import RESULTS
from moe.files import read_json, write_json, write_whole


def scores(corpus: str) -> list[SystemScores]:
    """Every row under every token and seed that has been measured, as `compare` takes them."""
    found = []
    for path in sorted(FOLDER.glob(f"{corpus}_*/facts.json")):
        facts = read_json(path)
        for asked in ASKS:
            if not (kept := path.with_name(f"{asked}.parquet")).exists():  # a row without trained tokens
                continue
            table = pd.read_parquet(kept)
            metadata = {"seed": facts["seed"], "n_trainable": facts["n_trainable"], "training_seconds": facts["training_seconds"]}
            found.append(
                SystemScores(
                    f"{facts['row']}: {asked}", path.parent.name, "domain_whisper", "candidate", table, metadata=metadata
                )
            )
    return found


def write_table() -> str:
    """Error rates of everything measured, by row and token, and the pairs that the questions are about."""
    parts, found = ["# Domain tokens"], {}
    for corpus in (RULE, DEMO):
        systems = scores(corpus)
        if not systems:
            continue
        rates = pd.DataFrame(map(_rates, systems))
        found[corpus] = rates.to_dict("records")
        table = rates.groupby(["row", "token"], sort=False).agg(
            seeds=("seed", "size"), wer=("wer", "mean"), lowest=("wer", "min"), highest=("wer", "max"), normal=("normal", "mean"),
            target_cer=("target_cer", "mean"), n_trainable=("n_trainable", "first"), minutes=("minutes", "mean"),
        ).reset_index()  # fmt: skip
        for name in ("wer", "lowest", "highest", "normal", "target_cer"):
            table[name] = table[name].map(percent)
        parts += [f"## {corpus}", markdown_table(table)]
        if corpus == RULE:
            parts += [markdown_table(_against_the_other_text(systems))]
        elif any(system.name.endswith(": right") for system in systems):
            found["tests"] = _tests(systems).to_dict("records")
            parts += [markdown_table(_tests(systems))]
    text = "\n\n".join(parts) + "\n"
    with write_whole(RESULTS / "domain_tokens.md") as aside:
        aside.write_text(text, encoding="utf-8")
    write_json(RESULTS / "domain_tokens.json", found)
    return text


def _rates(system: SystemScores) -> dict[str, Any]:
    """Of one row, token and seed."""
    row, _, token = system.name.rpartition(": ")
    table, normal = system.hypotheses, system.hypotheses["etiology"].isin(["typical", "normal"])
    return {
        "row": row,
        "token": token,
        "seed": system.metadata["seed"],
        "wer": _rate(table, "word"),
        "normal": _rate(table[normal], "word"),
        "target_cer": _rate(table[~normal], "char"),
        "n_trainable": system.metadata["n_trainable"],
        "minutes": round(system.metadata["training_seconds"] / 60, 1),
    }


def _rate(table: pd.DataFrame, unit: str) -> float:
    return float(table[f"{unit}_errors"].sum() / max(1, table[f"n_{unit}s"].sum()))


def _against_the_other_text(systems: list[SystemScores]) -> pd.DataFrame:
    """WER against the text that the token asks for, and against the other."""
    rows = []
    for system in systems:
        row, _, token = system.name.rpartition(": ")
        if token not in ("right", "wrong"):
            continue
        for domain, part in system.hypotheses.groupby("domain"):
            text = "wanted" if token == "right" else "the other"
            rows.append({"row": row, "token": domain, "text": text, "WER": percent(_rate(part, "word")), "utterances": len(part)})
    return pd.DataFrame(rows)


def _tests(systems: list[SystemScores]) -> pd.DataFrame:
    """Paired tests of the tokens of a row, and of each row against the same training without tokens; below 0 is better. Holm over all."""
    names = {system.name for system in systems}
    bases = {name.removesuffix(": right"): name for name in sorted(names) if name.endswith(": right")}
    rows = []
    for row, base in bases.items():
        plain = next((f"{other}: none" for other in (f"{row}, no tokens", "no tokens") if f"{other}: none" in names), None)
        others = [name for name in (f"{row}: wrong", f"{row}: none", f"{row}: auto", plain) if name in names and name != base]
        seeds = {system.metadata["seed"] for system in systems if system.name == base}
        for other in others:
            shared = seeds & {system.metadata["seed"] for system in systems if system.name == other}
            sides = [
                [each for each in systems if each.name == name and each.metadata["seed"] in shared] for name in (other, base)
            ]
            tests = compare([*sides[0], *sides[1]], base=other, group_columns=["etiology"], plots=False).tests.iloc[0]
            found = {"points": 100 * tests["difference"], "low": 100 * tests["low"], "high": 100 * tests["high"]}
            rows.append({"system": base, "against": other, "seeds": len(shared), **found, **tests[["p_bootstrap", "p_mapsswe"]]})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_bootstrap"])).round(4)
