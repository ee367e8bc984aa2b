"""The model card of a registered recogniser (after Mitchell et al. 2019, "Model Cards for Model Reporting"): tables in, Markdown out."""

from dataclasses import dataclass, field

import pandas as pd

from analysis.error_rates import SMALL_SPEAKERS, SMALL_WORDS, rates_by
from analysis.groups import column_name, groupings
from analysis.report import markdown_table, percent, percent_interval
from analysis.systems import SystemScores, counted

SYNTHETIC = "**Trained and tested on SYNTHETIC speech only: its numbers are real measurements of synthetic speech and say nothing about people.**"


@dataclass(frozen=True)
class CardFacts:
    """What the tables do not tell.

    Args:
        name: of the registered model, with its version where known.
        base, base_licence: the base model and its licence as its files state it; empty where they do not.
        language: the code it was trained for.
        window_s: seconds of audio that one pass takes; longer recordings are cut. None: any length.
        corpus: facts about the training data, label to text.
        decoding: the decoding policy, label to text.
        lineage: run id to step, nearest first.
        decision: what became of it in the registry.
    """

    name: str
    base: str
    base_licence: str
    language: str
    window_s: float | None
    corpus: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, str] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    decision: str = ""


def model_card(facts: CardFacts, scores: SystemScores) -> str:
    """The card as Markdown."""
    table = counted(scores)
    overall = rates_by(table).iloc[0]
    groups = group_table(table)
    synthetic = [SYNTHETIC] if scores.metadata.get("note") else []
    parts = [f"# {facts.name}: {scores.name}", *synthetic, _summary(facts, scores, overall)]
    parts += ["## Intended use", _intended(facts, scores), "## Data", _lines(facts.corpus)]
    parts += [
        "## Evaluation",
        _evaluation(scores, overall),
        markdown_table(_readable(groups)),
        "## Limits",
        _limits(facts, scores, groups),
    ]
    parts += ["## Base model and licence", _licence(facts), "## Decoding", _lines(facts.decoding)]
    parts += ["## Lineage", _lines({step: f"`{run_id}`" for run_id, step in facts.lineage.items()})]
    return "\n\n".join(part for part in parts if part) + "\n"


def group_table(table: pd.DataFrame) -> pd.DataFrame:
    """Error rates of every group of every grouping: the columns of `rates_by`, and `column`."""
    parts = [rates_by(table, column).assign(column=column) for column in groupings(table)]
    return pd.concat(parts, ignore_index=True) if parts else rates_by(table).assign(column="all")


def _summary(facts: CardFacts, scores: SystemScores, overall: pd.Series) -> str:
    experts = f", {len(scores.expert_wer)} experts" if scores.expert_wer else ""
    trained = scores.metadata.get("n_trainable")
    size = f", {trained:,} parameters trained" if trained else ""
    said = f"Speech recognition ({facts.language}){experts}{size}. Test WER {percent_interval(overall['wer'], overall['low'], overall['high'])}."
    return f"{said} {facts.decision}".strip()


def _intended(facts: CardFacts, scores: SystemScores) -> str:
    etiologies = sorted(scores.hypotheses["etiology"].dropna().unique()) if "etiology" in scores.hypotheses else []
    who = f" of the kinds it was tested on: {', '.join(map(str, etiologies))}" if etiologies else ""
    return (
        f"Transcribing speech in {facts.language}{who}. Not for diagnosis, not for telling speakers apart, and not where a wrong word does "
        "harm without a person checking. Expert weights say which adapter was used; they are no statement about a speaker's health."
    )


def _evaluation(scores: SystemScores, overall: pd.Series) -> str:
    return (
        f"{overall['n_utterances']} utterances of {overall['n_speakers']} speakers unseen in training, {overall['n_words']} words; "
        f"normaliser `{scores.metadata.get('normaliser', 'unknown')}`; 95 % intervals by bootstrap over speakers. "
        f"WER {percent_interval(overall['wer'], overall['low'], overall['high'])}, "
        f"CER {percent_interval(overall['cer'], overall['cer_low'], overall['cer_high'])}."
    )


def _readable(groups: pd.DataFrame) -> pd.DataFrame:
    rates = {name.upper(): [percent_interval(*row) for row in groups[columns].to_numpy(float)] for name, columns in
             {"wer": ["wer", "low", "high"], "cer": ["cer", "cer_low", "cer_high"]}.items()}  # fmt: skip
    shown = pd.DataFrame({"by": groups["column"].map(column_name), "group": groups["group"].astype(str), **rates})
    shown = shown.assign(utterances=groups["n_utterances"], speakers=groups["n_speakers"])
    return shown.assign(small=groups["small"].map({True: "yes", False: ""})) if groups["small"].any() else shown


def _limits(facts: CardFacts, scores: SystemScores, groups: pd.DataFrame) -> str:
    worst = groups.loc[groups["wer"].idxmax()]
    small = groups[groups["small"]]
    lines = [
        f"Highest error rate: {column_name(worst['column'])} {worst['group']}, WER {percent(worst['wer'])}.",
        "Kinds of speech, languages, microphones and rooms that are not in the test set are not covered by these numbers.",
        "Confidence is the model's own token probability, not calibrated: high confidence is no proof of a right word.",
    ]
    if facts.window_s is not None:
        lines.insert(1, f"Recordings longer than {facts.window_s:g} s are cut at quiet places; words at a cut may suffer.")
    if len(small):
        names = ", ".join(f"{column_name(row.column)} {row.group}" for row in small.itertuples())
        lines.append(f"Fewer than {SMALL_SPEAKERS} speakers or {SMALL_WORDS} words, so little can be said: {names}.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(facts: CardFacts) -> str:
    said = facts.base_licence or "not stated in the base model's files: ask whoever published it"
    return f"Base model: {facts.base or 'unknown'}. Its licence: {said}. Adapters and gate were trained on the data above, whose terms apply too."


def _lines(facts: dict[str, str]) -> str:
    return "\n".join(f"- {label}: {text}" for label, text in facts.items())
