"""The step `evaluate` on toys: what it logs, that a killed one goes on, ablations of a sample, long recordings, and `compare` after it."""

import dataclasses
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from moe.files import read_json
from moe.system import DecodingOptions
from moe.systems.table import load_system
from moe.systems.whisper_moe.model import WhisperMoE
from steps import compare, evaluate
from steps.inputs.test_set import prepare_test_set, recognise, recognise_ablations
from steps.tracking import artifacts
from steps.tracking.logged_models import MODEL_RUN_TAG
from steps.tracking.source_code import DIFF
from steps.tracking.store import connect
from tests.toys.chain import PLAIN
from tests.toys.finished import LENGTHS_S, finished_runs
from tests.toys.models import N_EXPERTS


@pytest.fixture
def runs(store: Path, tmp_path: Path) -> dict[str, str]:
    """Runs of prepare, asr (four experts) and baseline (the base as it is)."""
    return finished_runs(tmp_path)


def options(runs: dict[str, str], model: str = "asr", **changes) -> evaluate.StepOptions:
    given = {
        "prepare_run_id": runs["prepare"],
        "model_run_id": runs[model],
        "decoding_batch_size": 2,
    }
    return evaluate.StepOptions(**PLAIN | given | {"explorer_audio_mb": 0.05} | changes)


def hypotheses_of(run_id: str) -> pd.DataFrame:
    return pd.read_parquet(artifacts.upstream(run_id, artifacts.HYPOTHESES))


def test_an_evaluation_says_everything_by_group_and_in_the_explorer(runs) -> None:
    run_id = evaluate.run(options(runs, scoring="sapc2", evaluation_view=True))
    metrics = connect().client.get_run(run_id).data.metrics
    table = hypotheses_of(run_id)
    assert table["utterance_id"].tolist() == [f"u{number}" for number in range(1, 9)]
    assert metrics["test/wer"] == pytest.approx(table["word_errors"].sum() / table["n_words"].sum())
    assert (
        metrics["wer/corpus"] == metrics["test/wer"] and metrics["cer/corpus"] == metrics["test/cer"]
    )  # MLflow's own evaluation
    view = read_json(artifacts.upstream(run_id, "eval_results_table.json"))
    assert len(view["data"]) == len(table) and {"wer/score", "cer/score", "reference", "hypothesis"} <= set(view["columns"])
    wanted = {"test/cer", "test/wer_clipped", "test/sapc2/cer", "test/mean_logprob", "test/regret", "test/routing_entropy",
              "real_time_factor", "tokens_per_s", "utterances_per_s"}  # fmt: skip
    assert wanted <= set(metrics)
    assert (table["mean_logprob"] < 0).all() and (table["n_tokens"] > 0).all() and (table["reference_fluent"] == "oak").all()
    scores = read_json(artifacts.upstream(run_id, artifacts.SCORES))
    assert (
        scores["challenge"]["two_references"]
        and scores["scoring"] == "sapc2"
        and set(scores["expert_wer"]) == {f"expert_{e}" for e in range(4)}
    )
    page = artifacts.upstream(run_id, "explorer.html").read_text()
    assert "Utterances and their errors: Whisper-MoE" in page
    assert page.count("data:audio/mpeg;base64,") > 1 and len(page) < 150_000
    assert page.count("data:image/png;base64,") == page.count("data:audio/mpeg;base64,")
    firsts = {"wer_by_etiology": "als", "wer_by_sex": "female", "wer_by_duration_group": "under 2 s", "wer_by_language": "en",
              "wer_by_speaker": "s0", "flags": "loop", "expert_load": 3, "ablations": "uniform", "regret": "u1"}  # fmt: skip
    for name, member in firsts.items():
        assert member in [row[0] for row in read_json(artifacts.upstream(run_id, f"tables/{name}.json"))["data"]], name


def test_share_audio_false_keeps_every_recording_out_of_the_store(runs) -> None:
    run_id = evaluate.run(options(runs, "baseline", share_audio=False, explorer_audio_mb=5))
    folder = artifacts.upstream(run_id, artifacts.SCORES).parent
    written = [
        path for path in folder.rglob("*") if path.is_file() and path.name != DIFF
    ]  # a changed checkout's may hold these lines
    assert not [path for path in written if path.suffix in (".wav", ".mp3", ".flac", ".png")]
    assert not [path for path in written if b"data:audio" in path.read_bytes() or b"data:image" in path.read_bytes()]


def test_a_killed_evaluation_goes_on_and_ends_bit_identical(runs, monkeypatch) -> None:
    """Killed in the gate's own decoding, and in the ablations; batches that are done are not decoded again."""
    calls, left, search = [], [0], WhisperMoE.say

    def counting(self, *args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        calls.append(1)
        return search(self, *args)

    monkeypatch.setattr(WhisperMoE, "say", counting)
    undisturbed, n_whole = hypotheses_of(evaluate.run(options(runs))), len(calls)
    assert n_whole >= len({round(s) for s in LENGTHS_S})
    for seed, n_before in ((1, 2), (2, 7)):
        calls.clear()
        left[0] = n_before + 1
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(options(runs, seed=seed))
        found = hypotheses_of(evaluate.run(options(runs, seed=seed)))
        pd.testing.assert_frame_equal(found, undisturbed, check_exact=True)
        assert 0 <= len(calls) - n_whole < N_EXPERTS + 1  # at most the batch that was cut off


def test_batch_size_and_order_change_no_hypothesis(runs, monkeypatch) -> None:
    small, large = (hypotheses_of(evaluate.run(options(runs, ablations=False, decoding_batch_size=size))) for size in (1, 8))
    assert small["hypothesis"].tolist() == large["hypothesis"].tolist()


def test_ablations_of_a_sample_stand_beside_the_gates_own_on_the_same_utterances(runs, tmp_path, monkeypatch) -> None:
    from steps.inputs.corpus import read_prepared

    model_dir = artifacts.upstream(runs["asr"], artifacts.MODEL)
    system = load_system(model_dir)
    test_set = prepare_test_set(
        system, system.ask_type(), read_prepared(runs["prepare"]), model_dir, DecodingOptions(), tmp_path / "work"
    )
    made, features = [], system.inputs.features
    monkeypatch.setattr(system.inputs, "features", lambda wave: made.append(len(wave)) or features(wave))
    counted, seconds = recognise(test_set)
    assert len(made) == len(test_set.dataset)  # as for a system whose features no gate has asked for before
    some, whole = (recognise_ablations(test_set, counted, n, seed=4) for n in (4, 0))
    assert (
        set(some) == {"learned", "random", "oracle", "uniform", "shared", *(f"expert_{e}" for e in range(N_EXPERTS))}
        and seconds > 0
    )
    chosen = some["learned"]["utterance_id"].tolist()
    assert 4 <= len(chosen) < 8 and all(table["utterance_id"].tolist() == chosen for table in some.values())
    for name in ("learned", "uniform", "expert_2", "oracle"):
        ours = whole[name].set_index("utterance_id").loc[chosen, "hypothesis"].tolist()
        assert some[name]["hypothesis"].tolist() == ours, name
    oracle = whole["oracle"].set_index("utterance_id")
    for utterance_id, etiology in zip(counted["utterance_id"], counted["etiology"], strict=True):
        expert = whole[f"expert_{ {'als': 1, 'typical': 2}[etiology] }"].set_index("utterance_id")
        assert oracle.loc[utterance_id, "hypothesis"] == expert.loc[utterance_id, "hypothesis"]


def test_models_are_ranked_by_their_metrics_with_the_test_set(runs) -> None:
    ids = {name: evaluate.run(options(runs, name, ablations=False)) for name in ("asr", "baseline")}
    again = evaluate.run(options(runs, "baseline", seed=9))
    order = [{"field_name": "metrics.test/wer", "dataset_name": "test manifest", "ascending": True}]
    found = mlflow.search_logged_models([connect().experiment_id], order_by=order, output_format="list")
    assert {model.tags[MODEL_RUN_TAG] for model in found} == {runs["asr"], runs["baseline"]}  # two evaluations, one model
    wer = [next(m.value for m in model.metrics if m.key == "test/wer") for model in found]
    assert wer == sorted(wer) and {model.name for model in found} == {"whisper_moe", "zero_shot"}
    better = mlflow.search_logged_models(
        [connect().experiment_id], filter_string=f"metrics.`test/wer` <= {wer[0]}", output_format="list"
    )
    assert found[0].model_id in [model.model_id for model in better]
    metric = next(m for m in found[0].metrics if m.key == "test/wer")
    assert metric.dataset_name == "test manifest" and metric.dataset_digest and metric.run_id in {*ids.values(), again}


def test_compare_takes_ids_or_a_filter_in_a_run_or_in_a_notebook(runs) -> None:
    ids = [evaluate.run(options(runs, name, ablation_utterances=3)) for name in ("baseline", "asr")]
    found = compare.compare(ids, n_resamples=200)
    assert found.table["system"].tolist() == ["base model", "Whisper-MoE"] and len(found.experts) == N_EXPERTS
    assert {"wer_by_system", "wer_by_etiology", "load_whisper_moe"} <= set(found.figures)
    assert "<table>" in found._repr_html_()
    wanted = f"params.prepare_run_id = '{runs['prepare']}'"
    pd.testing.assert_frame_equal(compare.compare(wanted, n_resamples=200, plots=False).table, found.table)
    run_id = compare.run(compare.StepOptions(evaluate_filter=wanted, n_resamples=200, no_plot=True))
    assert set(ids) <= set(artifacts.lineage(run_id))
    text = artifacts.upstream(run_id, "comparison.md").read_text()
    assert "WER of each expert alone" in text and "7.2" not in text and "0.002 CPU h" in text
    with pytest.raises(ValueError, match="0 finished evaluate"):
        compare.compare("params.prepare_run_id = 'nothing'")
    with pytest.raises(ValueError, match="one of evaluate_run_ids and evaluate_filter"):
        compare.StepOptions(evaluate_run_ids="a,b", evaluate_filter=wanted)


def test_what_cannot_be_scored_is_refused_by_name(runs) -> None:
    with pytest.raises(RuntimeError, match="no run id given"):
        evaluate.run(evaluate.StepOptions(prepare_run_id=runs["prepare"], model_run_id="none"))
    with pytest.raises(ValueError, match="scoring='sapc3'"):
        evaluate.StepOptions(prepare_run_id="p", model_run_id="a", scoring="sapc3")
    assert np.isfinite(evaluate.StepOptions(prepare_run_id="p", model_run_id="a").explorer_audio_mb)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("baseline", "decoding_top_k=9: base model does not take it; it takes language"),
        ("asr", "top_k=9: must be between 1 and 4"),
    ],
)
def test_what_a_recogniser_cannot_be_asked_is_refused_before_a_run_begins(runs, model: str, said: str) -> None:
    n_runs = len(connect().client.search_runs([connect().experiment_id]))
    with pytest.raises(ValueError, match=said):
        evaluate.run(options(runs, model, decoding_top_k=9))
    assert len(connect().client.search_runs([connect().experiment_id])) == n_runs


def test_experts_mixed_are_those_that_are_asked_for(runs) -> None:
    table = hypotheses_of(evaluate.run(options(runs, ablations=False, decoding_top_k=1)))
    assert (table[[f"weight_{expert}" for expert in range(N_EXPERTS)]].to_numpy().max(1) == 1).all()


def test_the_share_that_was_backed_off_is_a_metric_and_a_column(runs) -> None:
    asked = [evaluate.run(options(runs, ablations=False, backoff=backoff)) for backoff in (1.0, 0.0)]
    tables, metrics = (
        [hypotheses_of(run_id) for run_id in asked],
        [connect().client.get_run(run_id).data.metrics for run_id in asked],
    )
    assert metrics[0]["test/backed_off"] == tables[0]["backed_off"].mean() and set(tables[0]["backed_off"]) <= {0.0, 1.0}
    assert (tables[0]["mean_logprob"] >= tables[1]["mean_logprob"] - 1e-3).all()
    assert "test/backed_off" not in metrics[1] and "backed_off" not in tables[1]


def test_where_nobody_speaks_the_text_counts_only_if_that_is_asked(runs) -> None:
    """The toy's chords are no speech."""
    asked = evaluate.StepOptions(
        prepare_run_id=runs["prepare"], model_run_id=runs["asr"], max_tokens_per_s=4.0, ablations=False, **PLAIN
    )
    usual, gated = (
        pd.read_parquet(artifacts.upstream(evaluate.run(options), artifacts.HYPOTHESES))
        for options in (asked, dataclasses.replace(asked, speech_threshold=0.3))
    )
    assert "no_speech" not in usual and (usual["hypothesis"] != "").any()
    assert gated["no_speech"].all() and (gated["hypothesis"] == "").all() and len(gated) == len(usual)
    assert gated["utterance_id"].tolist() == usual["utterance_id"].tolist()
