"""A comparison in plain words and readable tables: what is better than what, by how much, how sure, and where it is worse."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.challenge import RULES
from analysis.error_rates import SMALL_SPEAKERS
from analysis.groups import column_name
from analysis.report import cell, percent, percent_interval
from analysis.routing import LEARNED
from analysis.system_tables import differs
from analysis.systems import CONTROL, MIXTURE

ALPHA = 0.05
CPU = "cpu"  # device of a run that had no accelerator
MOST_NAMED = 6  # groups named in a sentence


def verdict(table: pd.DataFrame, tests: pd.DataFrame, group_tests: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> str:
    """Sentences: every system against the base and against its fair control, groups that got worse, warnings.

    Args:
        table, tests, group_tests: of `analysis.comparison.Comparison`.
        pairs: of names, as `analysis.systems.asked_pairs` gives them.
    """
    lines = [_pair_sentence(table, tests, group_tests, *pair) for pair in pairs]
    return "\n".join([best_sentence(table, tests), *lines, *_warnings(table)])


def difference_words(row: pd.Series) -> str:
    """A test as words: "3.1 points better (−4.0 to −2.2), significant (p = 0.002)"."""
    value = row["difference"]
    size = f"{abs(100 * value):.1f} points {'better' if value < 0 else 'worse'}" if round(100 * value, 1) else "no different"
    interval = f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})" if np.isfinite(row["low"]) else ""
    p_value = row["p_bootstrap_holm"]
    if np.isnan(p_value):
        return f"{size}{interval}, not testable: fewer than two speakers"
    tested = f"({p_words(p_value)} over speakers, {p_words(row['p_mapsswe_holm'])} by MAPSSWE, both after Holm)"
    if p_value < ALPHA:
        return f"{size}{interval}, significant {tested}"
    return f"{size}{interval}, not significant {tested}; this test could have seen {visible_words(row['visible'])}"


def visible_words(visible: float) -> str:
    """The smallest difference that a test finds in four of five tries, as words."""
    return f"{100 * visible:.1f} points" if np.isfinite(visible) else "nothing"


def p_words(p_value: float) -> str:
    """p as people write it."""
    if np.isnan(p_value):
        return "p not defined"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def test_of(tests: pd.DataFrame, system: str, base: str) -> pd.Series:
    """The test of a pair as system minus base, turned round where it was made the other way."""
    straight = tests[(tests["system"] == system) & (tests["base"] == base)]
    if len(straight):
        return straight.iloc[0]
    turned = tests[(tests["system"] == base) & (tests["base"] == system)].iloc[0].copy()
    turned["difference"], turned["low"], turned["high"] = -turned["difference"], -turned["high"], -turned["low"]
    turned["system"], turned["base"] = system, base
    return turned


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """The systems table as a person reads it: rates in percent with their intervals, columns nobody filled left out."""
    rows = {
        "system": table["system"],
        "runs": table["n_runs"],
        "trainable": [cell(int(n)) if np.isfinite(n) else "–" for n in table["n_trainable"]],
        "gating accuracy": [percent(rate) for rate in table["gating_accuracy"]],
        "expert WER": [_range(*pair) for pair in zip(table["expert_wer_min"], table["expert_wer_max"], strict=True)],
        "WER": [percent_interval(*row) for row in table[["wer", "low", "high"]].to_numpy(float)],
        "CER": [percent_interval(*row) for row in table[["cer", "cer_low", "cer_high"]].to_numpy(float)],
        "against base": [f"{100 * change:+.0f} %" if np.isfinite(change) else "–" for change in table["relative_change"]],
        "seeds": [_range(*pair) for pair in zip(table["seed_wer_min"], table["seed_wer_max"], strict=True)],
        **{name: [percent(rate) for rate in table[name]] for name in RULES if name in table},
        "utterances/s": table["utterances_per_s"],
        "training": [_training(*pair) for pair in zip(table["training_hours"], table["training_device"], strict=True)],
        "peak MB": table["peak_memory_mb"],
    }
    same = {"utterances/s": "utterances_per_s", "peak MB": "peak_memory_mb"}
    shown = pd.DataFrame({name: values for name, values in rows.items() if name not in same or differs(table, same[name])})
    if (table["n_runs"] == 1).all():
        shown = shown.drop(columns=["runs", "seeds"])
    empty = [name for name in shown if shown[name].map(lambda value: cell(value) == "–").all()]
    return shown.drop(columns=empty)


def readable_experts(experts: pd.DataFrame) -> pd.DataFrame:
    """WER of each expert alone, one row per run of a mixture and one column per expert, and how far they lie apart."""
    said = experts.assign(wer=experts["wer"].map(percent))
    wide = said.pivot(index=["system", "run_id"], columns="expert", values="wer").sort_index(axis=1)
    wide = wide.rename(columns=lambda expert: f"expert {expert}").reset_index()
    return wide.rename_axis(columns=None).rename(columns={"run_id": "run"}).assign(run=lambda rows: rows["run"].str[:8])


def readable_tests(tests: pd.DataFrame) -> pd.DataFrame:
    """The tests as a person reads them."""
    return pd.DataFrame(
        {
            "system": tests["system"],
            "against": tests["base"],
            "WER difference, points (95 %, not corrected)": [
                f"{100 * row.difference:+.1f} ({100 * row.low:+.1f} to {100 * row.high:+.1f})" for row in tests.itertuples()
            ],
            "p over speakers, by itself": [_p_cell(p) for p in tests["p_bootstrap"]],
            "p over speakers (Holm)": [_p_cell(p) for p in tests["p_bootstrap_holm"]],
            "p MAPSSWE (Holm)": [_p_cell(p) for p in tests["p_mapsswe_holm"]],
            "could have seen, points": [f"{100 * size:.1f}" if np.isfinite(size) else "–" for size in tests["visible"]],
            "segments": tests["n_segments"],
        }
    )


def readable_groups(by_group: pd.DataFrame) -> pd.DataFrame:
    """WER by group, one row per group and one column per system, small groups marked."""
    if len(by_group) == 0:
        return pd.DataFrame(columns=["by", "group"])
    said = [percent_interval(*row) for row in by_group[["wer", "low", "high"]].to_numpy(float)]
    keys = ["column", "group"]
    wide = by_group.assign(said=said).pivot(index=keys, columns="system", values="said")
    wide = wide.loc[
        list(dict.fromkeys(zip(*(by_group[key] for key in keys), strict=True))), list(dict.fromkeys(by_group["system"]))
    ]
    first = by_group.drop_duplicates(keys).set_index(keys).loc[wide.index]
    sizes = {"utterances": first["n_utterances"], "speakers": first["n_speakers"]}
    if first["small"].any():
        sizes["small"] = first["small"].map({True: "yes", False: ""})
    shown = pd.concat([pd.DataFrame(sizes), wide.rename(columns=lambda name: f"{name} WER")], axis=1).reset_index()
    return shown.rename(columns={"column": "by"}).assign(by=lambda table: table["by"].map(column_name))


def _pair_sentence(table: pd.DataFrame, tests: pd.DataFrame, group_tests: pd.DataFrame, system: str, base: str) -> str:
    wer = table.set_index("system")["wer"]
    difference = difference_words(test_of(tests, system, base))
    said = f"- {system} ({percent(wer[system])} WER) against {base} ({percent(wer[base])}): {difference}."
    if len(group_tests) == 0:
        return said
    return said + _groups_clause(group_tests[(group_tests["system"] == system) & (group_tests["base"] == base)])


def _groups_clause(groups: pd.DataFrame) -> str:
    """In which groups a system is worse, and in which it gained most; empty where the pair was not broken down."""
    if len(groups) == 0:
        return ""
    best = groups.loc[groups["difference"].idxmin()]
    gained = (
        f" Most gained: {_group_name(best['column'], best['group'])}, {-100 * best['difference']:.1f} points."
        if best["difference"] < 0
        else ""
    )
    worse = groups[groups["difference"] > 0].sort_values("difference", ascending=False, kind="stable")
    if len(worse) == 0:
        return f" No group is worse.{gained}"
    names = [
        f"{_group_name(row.column, row.group)} by {100 * row.difference:.1f}{'' if row.p_holm < ALPHA else ' (not significant)'}"
        for row in worse.head(MOST_NAMED).itertuples()
    ]
    more = f" and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
    return f" Worse in {len(worse)} of {len(groups)} groups: {', '.join(names)}{more}.{gained}"


def _group_name(column: str, group: str) -> str:
    """A group as a sentence names it: "yes" of `sentence_seen` says nothing by itself, nor does a rating."""
    names = {("sentence_seen", "yes"): "sentences of train", ("sentence_seen", "no"): "unseen sentences"}
    plain = not group.replace(".", "").isdigit() and group not in ("yes", "no", "unknown")
    return names.get((column, group), group if plain else f"{column_name(column)} {group}")


def best_sentence(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """The system with the lowest WER, and whether it is significantly below the next, with p as it was judged."""
    order = table.sort_values("wer", kind="stable")
    best, second = order["system"].iloc[0], order["system"].iloc[1]
    found = test_of(tests, best, second)
    p_value = found["p_bootstrap_holm" if found["asked"] else "p_bootstrap"]
    clause = "significantly below" if p_value < ALPHA else "but not significantly below"
    tested = f"{p_words(p_value)}{' after Holm' if found['asked'] else ''}"
    rates = [percent(rate) for rate in order["wer"].iloc[:2]]
    return f"Lowest WER: {best}, {rates[0]}, {clause} the next, {second}, {rates[1]} ({tested})."


def size_sentence(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """What a comparison of this size can and cannot show, by its own standard error: of a mixture and its control, else of the best two."""
    by_role = table.drop_duplicates("role").set_index("role")["system"]
    order = table.sort_values("wer", kind="stable")["system"]
    pair = [by_role[MIXTURE], by_role[CONTROL]] if {MIXTURE, CONTROL} <= set(by_role.index) else order.head(2).tolist()
    found, n_runs = test_of(tests, *pair), int(table["n_runs"].max())
    size = f"{int(table['n_speakers'].min())} test speakers and {n_runs} training{'s' if n_runs > 1 else ''} of each system"
    if not np.isfinite(found["visible"]):
        return f"{size} show no difference: at least two speakers whose errors differ are needed."
    return (
        f"{size} show a difference of {visible_words(found['visible'])} between {pair[0]} and {pair[1]} in four of five tries, "
        "and can neither show nor rule out a smaller one."
    )


def _warnings(table: pd.DataFrame) -> list[str]:
    n_speakers = int(table["n_speakers"].min())
    if n_speakers >= SMALL_SPEAKERS:
        return []
    return [f"Only {n_speakers} speaker(s): intervals over speakers say little here."]


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f} %" if np.isfinite([low, high]).all() else "–"


def _training(hours: float, device: str) -> str:
    """Hours of training on one core, or with an accelerator held: "0.053 CPU h", "1.2 GPU h"."""
    if not np.isfinite(hours):
        return "–"
    return f"{hours:.2g} {'GPU ' if device not in ('', CPU) else 'CPU ' if device == CPU else ''}h"


def _p_cell(p_value: float) -> str:
    return "–" if np.isnan(p_value) else p_words(p_value).removeprefix("p ").removeprefix("= ")


def diagnosis(wer: Mapping[str, float]) -> str:
    """In words: does the gate's routing lower the WER, and if not, is it the gate, the clusters or the capacity?"""
    said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in sorted(wer.items(), key=lambda pair: pair[1]))
    parts = [f"Routing: {said}."]
    best_fixed = min(value for name, value in wer.items() if name in ("oracle", "cluster", "uniform", "random"))
    if wer[LEARNED] <= min(wer["random"], wer["uniform"]) - 0.005:
        parts.append(
            "The learned routing beats random and uniform routing: the experts differ and the gate knows whom to send where."
        )
    else:
        parts.append("The learned routing does not clearly beat random or uniform routing: the experts hardly differ.")
    if wer[LEARNED] - best_fixed > 0.01:
        parts.append("A better gate would gain: the best fixed routing is more than a point below the learned one.")
    return " ".join(parts)
