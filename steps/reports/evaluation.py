"""What an evaluation leaves in its run: rates by group, flags, routing, the error explorer, and `scores.json` for `compare`."""

import dataclasses
import tempfile
from pathlib import Path

import pandas as pd

from analysis.challenge import PLAIN, ChallengeScore, challenge_score
from analysis.error_rates import cer_without_spaces, rates_by
from analysis.flags import flag_counts, flag_hypotheses
from analysis.groups import EVERY_GROUP, column_name, with_groups
from analysis.pages.clips import embed_clips
from analysis.pages.explorer import explorer_html
from analysis.plots.errors import forest_figure
from analysis.report import markdown_table, percent, percent_interval
from analysis.systems import colour_place
from analysis.verdict import diagnosis
from moe.corpora.manifest import read_utterance
from moe.files import write_json
from moe.system import Routes
from moe.training.cost import device_name
from steps.inputs.corpus import Prepared
from steps.inputs.test_set import TestSet
from steps.reports.colours import number_of
from steps.reports.routing import log_routing
from steps.tracking import artifacts
from steps.tracking.logged_models import ScoredModel, attach_scores
from steps.tracking.step_run import StepRun

RATES = ("wer", "low", "high", "wer_clipped", "cer", "cer_low", "cer_high", "cer_clipped", "grapheme_cer")
SHOWN = ("utterance_id", "etiology", "speaker", "reference", "hypothesis", "word_errors", "n_words", "mean_logprob")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One recogniser's hypotheses of the test split and what is said of them.

    Attributes:
        counted: counted hypotheses, `ablated` those under other routings by name (empty without experts).
        seconds: of one processor core, or of the accelerator: decoding, features and routing included, ablations not.
        scoring: rule of a challenge, or `plain`.
        model_run_id: the run whose model it is.
        peak_memory_mb: the most memory held while decoding.
    """

    test_set: TestSet
    counted: pd.DataFrame
    ablated: dict[str, pd.DataFrame]
    seconds: float
    scoring: str
    model_run_id: str
    peak_memory_mb: float

    @property
    def note(self) -> str:
        """Stands under every picture."""
        return self.test_set.prepared.note


def log_evaluation(step: StepRun, evaluation: Evaluation, audio_mb: float, seed: int) -> None:
    """Log everything that one evaluation found."""
    counted = evaluation.counted
    step.log_table(counted, artifacts.HYPOTHESES)
    step.log_table(counted[list(SHOWN)].sort_values("word_errors", ascending=False), "tables/hypotheses.json")
    overall = rates_by(counted, None)
    step.log_table(overall, "tables/wer.json")
    metrics = {f"test/{name}": float(overall.iloc[0][name]) for name in RATES}
    metrics |= {"test/cer_without_spaces": cer_without_spaces(counted)["all"]} | _speed(evaluation)
    _log_groups(step, evaluation)
    step.log_table(flag_counts(flag_hypotheses(counted)), "tables/flags.json")
    challenge = _log_challenge(step, evaluation)
    metrics |= {f"test/{challenge.rule}/{name}": getattr(challenge, name) for name in ("wer", "cer")} if challenge else {}
    routing, system = {}, evaluation.test_set.system
    if evaluation.ablated and not isinstance(system, Routes):
        step.log_table(other_ways(evaluation.ablated), "tables/other_ways.json")
    if isinstance(system, Routes):
        top_k = getattr(evaluation.test_set.ask, "top_k", None) or system.top_k
        routing = log_routing(step, counted, evaluation.ablated, top_k, evaluation.note)
    _log_explorer(step, evaluation, audio_mb, seed)
    with tempfile.TemporaryDirectory() as temporary:
        write_json(Path(temporary) / artifacts.SCORES, _scores(evaluation, routing, challenge))
        step.log_file(Path(temporary) / artifacts.SCORES)
    attach_scores(step, _scored_model(evaluation), metrics | routing)
    step.add_to_name(evaluation.test_set.prepared.name, f"WER {percent(metrics['test/wer'])}")
    step.describe(_description(evaluation, overall, challenge))


def _log_groups(step: StepRun, evaluation: Evaluation) -> None:
    """Error rates of every group of every column that the corpus has, as tables: as metrics they would hide those of the run."""
    grouped = with_groups(evaluation.counted)
    for column in [name for name in EVERY_GROUP if name in grouped and grouped[name].notna().any()]:
        rates = rates_by(grouped, column)
        spaceless = rates["group"].astype(str).map(cer_without_spaces(grouped, column))
        step.log_table(rates.assign(cer_without_spaces=spaceless), f"tables/wer_by_{column}.json")
        if column != "speaker" and step.plots and len(rates) > 1:
            record = evaluation.test_set.system.record
            place = colour_place(record.role, number_of(record.system))
            figure = forest_figure(rates, f"WER by {column_name(column)}", evaluation.note, place)
            step.log_figure(figure, f"plots/wer_by_{column}.png")


def other_ways(ablated: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Error rates of every way of decoding, of all its utterances and by domain: way, group, n_utterances, wer, cer, cer_without_spaces."""
    rows = []
    for name, part in ablated.items():
        for column in [None, *(column for column in ("corpus_domain",) if column in part and part[column].notna().any())]:
            spaceless = cer_without_spaces(part, column)
            for row in rates_by(part, column, n_resamples=1).itertuples():
                rates = {"wer": row.wer, "cer": row.cer, "cer_without_spaces": spaceless[str(row.group)]}
                rows.append({"way": name, "group": row.group, "n_utterances": row.n_utterances, **rates})
    return pd.DataFrame(rows)


def _speed(evaluation: Evaluation) -> dict[str, float]:
    seconds, counted = evaluation.seconds, evaluation.counted
    return {
        "seconds": seconds,
        "real_time_factor": seconds / float(counted["duration_s"].sum()),
        "utterances_per_s": len(counted) / seconds,
        "tokens_per_s": float(counted["n_tokens"].sum()) / seconds,
        "peak_memory_mb": evaluation.peak_memory_mb,
        "n_utterances": len(counted),
        "test/mean_logprob": float((counted["mean_logprob"] * counted["n_tokens"]).sum() / counted["n_tokens"].sum()),
    }


def _log_challenge(step: StepRun, evaluation: Evaluation) -> ChallengeScore | None:
    if evaluation.scoring == PLAIN:
        return None
    score = challenge_score(evaluation.counted, evaluation.scoring)
    step.log_table(pd.DataFrame([dataclasses.asdict(score)]), "tables/challenge.json")
    return score


def _log_explorer(step: StepRun, evaluation: Evaluation, audio_mb: float, seed: int) -> None:
    rows = {row["utterance_id"]: row for row in evaluation.test_set.rows.to_dict("records")}
    root = evaluation.test_set.prepared.root
    clips = embed_clips(evaluation.counted, lambda name: read_utterance(root, rows[name]), audio_mb, seed)
    audio, pictures = ({name: getattr(clip, part) for name, clip in clips.items()} for part in ("audio", "picture"))
    title = f"Utterances and their errors: {evaluation.test_set.system.record.title}"
    step.log_text(explorer_html(evaluation.counted, title, audio, pictures, note=evaluation.note), "explorer.html")


def _scores(evaluation: Evaluation, routing: dict[str, float], challenge: ChallengeScore | None) -> dict:
    """What `compare` needs beside the hypotheses."""
    record, prepared = evaluation.test_set.system.record, evaluation.test_set.prepared
    ablations = {name: float(rates_by(part, None, n_resamples=1).iloc[0]["wer"]) for name, part in evaluation.ablated.items()}
    return {
        "system": record.system,
        "title": record.title,
        "role": record.role,
        "control": record.control,
        "normaliser": prepared.normaliser_version,
        "scoring": evaluation.scoring,
        "challenge": dataclasses.asdict(challenge) if challenge else None,
        "test_set_digest": prepared.digest,
        "prepare_run_id": prepared.run_id,
        "corpus": prepared.name,
        "model_run_id": evaluation.model_run_id,
        "note": evaluation.note,
        "gating_accuracy": routing.get("test/gating_accuracy"),
        "expert_wer": {name: wer for name, wer in ablations.items() if name.startswith("expert_")},
        "ablations": ablations,
        "ablation_utterances": len(next(iter(evaluation.ablated.values()), [])),
        "seconds": evaluation.seconds,
        "audio_seconds": float(evaluation.counted["duration_s"].sum()),
        "peak_memory_mb": evaluation.peak_memory_mb,
        "device": device_name(),
        **record.facts,
    }


def _scored_model(evaluation: Evaluation) -> ScoredModel:
    record, prepared = evaluation.test_set.system.record, evaluation.test_set.prepared
    facts = {name: str(value) for name, value in record.facts.items()}
    facts |= {"n_experts": str(record.shape.get("n_experts", 0)), "normaliser": prepared.normaliser_version}
    return ScoredModel(record.system, evaluation.model_run_id, facts, *_test_set(prepared))


def _test_set(prepared: Prepared) -> tuple[str, str]:
    return "test manifest", prepared.digest


def _description(evaluation: Evaluation, overall: pd.DataFrame, challenge: ChallengeScore | None) -> str:
    row, record = overall.iloc[0], evaluation.test_set.system.record
    by_etiology = rates_by(evaluation.counted, "etiology")
    lines = [
        f"WER {percent_interval(row['wer'], row['low'], row['high'])}: {record.title} on {evaluation.test_set.prepared.name}"
        f"{', SYNTHETIC speech' if evaluation.note else ''}.",
        "",
        f"CER {percent_interval(row['cer'], row['cer_low'], row['cer_high'])} "
        f"(95 %, bootstrap over {row['n_speakers']} speakers), clipped {percent(row['wer_clipped'])}; {row['n_utterances']} utterances, "
        f"{row['n_words']} words. The errors of each: `explorer.html`.",
        "",
        markdown_table(by_etiology[["group", "n_utterances", "n_speakers", "wer", "low", "high", "cer", "small"]]),
    ]
    if evaluation.test_set.prepared.caution:
        lines += ["", f"**{evaluation.test_set.prepared.caution}.**"]
    if challenge:
        second = "two references" if challenge.two_references else "one reference, the corpus gives no second"
        lines += ["", f"By the rules of {challenge.rule} ({second}): WER {percent(challenge.wer)}, CER {percent(challenge.cer)}."]
    if evaluation.ablated:
        lines += ["", _other_ways(evaluation)]
    return "\n".join(lines)


def _other_ways(evaluation: Evaluation) -> str:
    """What decoding the same weights in other ways says."""
    wer = {name: rates_by(part, None, n_resamples=1).iloc[0]["wer"] for name, part in evaluation.ablated.items()}
    n_utterances = len(next(iter(evaluation.ablated.values())))
    if isinstance(evaluation.test_set.system, Routes):
        return f"{diagnosis(wer)} (Other routings were decoded on {n_utterances} utterances.)"
    return f"Other ways to decode, of {n_utterances} utterances:\n\n{markdown_table(other_ways(evaluation.ablated))}"
