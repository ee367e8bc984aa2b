"""What the steps do beside training: options of the chain, parts of the train split, routing ablations, words of a diagnosis."""

import dataclasses
import inspect
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.systems import SystemScores
from analysis.verdict import diagnosis
from moe.corpora.subsets import stage_percent, subset
from moe.routing.ablations import majority
from moe.routing.embeddings import Embeddings, embed
from moe.routing.options import RoutingOptions
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper.features import AudioContextOptions
from moe.training.plan import ComputeOptions
from steps import asr, baseline, cluster, experts, main, prepare, pretrain
from steps import embed as embed_step
from steps.chain.stages import STAGES, n_experts
from steps.inputs import training
from steps.inputs.corpus import Prepared, path_digests, soft_labels
from steps.inputs.training import embeddings_of, plan_of
from steps.registry import judging
from steps.tracking.fingerprint import fingerprint
from tests.toys.chain import pending_options
from tests.toys.models import HALF, dataset, toy_base, write_corpus
from tests.toys.training import plan

IDS = {"prepare_run_id": "p", "pretrain_run_id": "b"}


def prepared(manifest: pd.DataFrame, root: Path) -> Prepared:
    return Prepared("run", manifest, str(root), "basic", "basic-1", "en", "", "digest", "toy")


def a_manifest(n: int = 60) -> pd.DataFrame:
    split = np.array(["train"] * 8 + ["dev", "test"])[np.arange(n) % 10]
    etiology = np.array(["als", "stroke", "typical"])[np.arange(n) % 3]
    return pd.DataFrame({"utterance_id": [f"u{k:03d}" for k in range(n)], "split": split, "etiology": etiology})


class TestChainOptions:
    def test_every_option_of_every_stage_is_mains_too_but_run_ids_and_what_main_decides(self) -> None:
        """Design 2: one name. A stage's option that `main` lacked could not be set for the chain."""
        ours = {field.name for field in dataclasses.fields(main.StepOptions)}
        for stage in STAGES:
            names = {field.name for field in dataclasses.fields(stage.StepOptions)}
            assert {name for name in names if "_run_id" not in name} - {"system"} <= ours, stage.__name__

    def test_an_option_of_two_stages_has_one_default(self) -> None:
        """Else `main` would start a stage with another value than the stage alone has."""
        own = {field.name for field in dataclasses.fields(main.ChainOptions)}
        defaults: dict[str, set] = {}
        for stage in STAGES:
            for field in dataclasses.fields(stage.StepOptions):
                if "_run_id" not in field.name and field.name not in own:
                    defaults.setdefault(field.name, set()).add(field.default)
        assert {name: found for name, found in defaults.items() if len(found) > 1} == {}

    def test_quick_makes_small_what_was_left_alone(self) -> None:
        small = main.StepOptions.asked(mode="quick", n_utterances=17)
        assert small.n_utterances == 17 and small.expert_epochs == main.SMALL["expert_epochs"] and small.max_samples == 240

    def test_every_stage_gets_the_value_that_main_was_given(self) -> None:
        options = main.StepOptions(top_k=1, pooling="mean", seed=9, asr_epochs=2, num_experts=5)
        for stage in (experts, asr, cluster, embed_step):
            given_options = pending_options(stage, options)
            names = {field.name for field in dataclasses.fields(given_options)}
            shared = names & {"top_k", "pooling", "seed", "asr_epochs"} | ({"num_experts"} if stage is cluster else set())
            assert {name: getattr(given_options, name) for name in shared} == {name: getattr(options, name) for name in shared}

    def test_experts_by_default_one_a_style_or_eight(self) -> None:
        assert n_experts(main.StepOptions()) == 6
        assert n_experts(main.StepOptions(corpus="folder", dataset_root="x")) == 8
        assert n_experts(main.StepOptions(num_experts=3)) == 3

    def test_faults_of_several_stages_are_told_together(self) -> None:
        options = main.StepOptions(noise="uniform", dev_share=0.8, test_share=0.8)
        with pytest.raises(ValueError, match="dev_share=0.8 and test_share=0.8.*noise=uniform"):
            main.check_stages(options)


class TestParts:
    @given(st.floats(1, 100), st.integers(1, 3000), st.integers(1, 3000))
    def test_a_stage_gets_its_share_or_the_floor_and_never_more_than_all(self, percent, floor, n) -> None:
        found = stage_percent(percent, 100.0, floor, n)
        assert found <= 100 and found >= min(100.0, percent) - 1e-9
        assert found * n / 100 >= min(floor, n) - 1e-6

    @given(st.integers(1, 40), st.floats(5, 100))
    def test_embed_lies_in_experts_lies_in_asr(self, floor: int, data_percent: float) -> None:
        """Pitfall 7, design 6: unequal percentages left utterances without embedding."""
        corpus = prepared(a_manifest(), Path())
        parts = [set(corpus.train(percent, data_percent, floor, 3)["utterance_id"]) for percent in (5.0, 15.0, 100.0)]
        assert parts[0] <= parts[1] <= parts[2] and parts[0]

    def test_the_rows_order_changes_no_part(self) -> None:
        """Pitfall 13: a seeded sample of an unsorted listing."""
        table = a_manifest()
        shuffled = table.sample(frac=1.0, random_state=1)
        assert subset(table, 30, 5) == subset(shuffled, 30, 5)

    @given(st.integers(1, 400), st.floats(0.01, 1.0))
    def test_scoring_an_epoch_takes_no_more_of_dev_than_its_share_and_every_etiology(self, n_train: int, share: float) -> None:
        corpus = prepared(a_manifest(), Path())
        dev, all_dev = corpus.dev(n_train, share, 3), corpus.rows("dev")
        assert len(dev) == min(len(all_dev), max(int(share * n_train), all_dev["etiology"].nunique()))
        assert set(dev["etiology"]) == set(all_dev["etiology"])
        assert all_dev["utterance_id"][all_dev["utterance_id"].isin(dev["utterance_id"])].tolist() == dev["utterance_id"].tolist()

    def test_an_empty_split_is_named(self) -> None:
        corpus = prepared(a_manifest().query("split != 'dev'"), Path())
        with pytest.raises(ValueError, match="prepare run run has no dev utterances"):
            corpus.rows("dev")

    def test_majority_by_hand(self) -> None:
        assert majority(np.array([1, 1, 0, 2, 2, 0]), ["a", "a", "a", "b", "b", "c"]) == {"a": 1, "b": 2, "c": 0}
        assert majority(np.array([2, 1]), ["a", "a"]) == {"a": 1}

    def test_soft_labels_come_in_the_experts_order(self) -> None:
        table = pd.DataFrame({"cluster": [0], "soft_0": [0.7], "soft_1": [0.3]})
        assert soft_labels(table).tolist() == [[pytest.approx(0.7), pytest.approx(0.3)]]

    def test_every_byte_of_a_local_corpus_counts(self, tmp_path: Path) -> None:
        (tmp_path / "wav").mkdir()
        (tmp_path / "wav" / "a.wav").write_bytes(b"1")
        (tmp_path / "manifest.csv").write_text("x")
        before = path_digests(str(tmp_path))
        (tmp_path / "wav" / "a.wav").write_bytes(b"2")
        after = path_digests(str(tmp_path))
        assert {name for name in before if before[name] != after[name]} == {"corpus/wav"}
        assert path_digests("hf://somewhere") == {}


class TestEmbeddings:
    CONTEXT = AudioContextOptions(context_floor_s=1.0, context_silence_s=0.2, context_bucket_s=0.25)

    def test_missing_embeddings_are_computed_never_skipped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pitfall 7: 4157 of 4823 utterances were skipped because their embeddings were missing."""
        manifest, base = write_corpus(tmp_path), toy_base()
        whole = embed(embedder(base.model, 0, "mean_std"), dataset(manifest, tmp_path, self.CONTEXT), tmp_path / "all", 32)
        half = Embeddings(whole.utterance_ids[:2], whole.vectors[:2])
        monkeypatch.setattr(training, "read_embeddings", lambda path: half)
        monkeypatch.setattr(training.artifacts, "upstream", lambda *_: tmp_path)
        found = embeddings_of(prepared(manifest, tmp_path), manifest, base, RoutingOptions(), self.CONTEXT, "an id")
        np.testing.assert_allclose(found.select(manifest["utterance_id"]), whole.vectors, atol=HALF, rtol=HALF)

    def test_cached_embeddings_are_taken_where_they_are_all_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = write_corpus(tmp_path)
        cached = Embeddings(tuple(manifest["utterance_id"]), np.zeros((len(manifest), 3), np.float32))
        monkeypatch.setattr(training, "read_embeddings", lambda path: cached)
        monkeypatch.setattr(training.artifacts, "upstream", lambda *_: tmp_path)
        assert embeddings_of(prepared(manifest, tmp_path), manifest, toy_base(), RoutingOptions(), self.CONTEXT, "id") is cached

    def test_an_utterance_without_embedding_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"1 utterances have no embedding, e.g. \['b'\]"):
            Embeddings(("a",), np.zeros((1, 2), np.float32)).select(["a", "b"])


class TestTraining:
    def test_the_plan_says_what_the_options_say(self) -> None:
        options = asr.StepOptions(
            **IDS,
            cluster_run_id="a",
            gate_run_id="b",
            experts_run_id="c",
            seed=9,
            gradient_accumulation_steps=3,
            num_workers=2,
            no_fp16=True,
        )
        found = plan_of(options, 4, 8, 0.5)
        assert (found.epochs, found.batch_size, found.learning_rate) == (4, 8, 0.5)
        assert (found.seed, found.accumulation, found.num_workers, found.precision) == (9, 3, 2, "fp32")

    def test_workers_and_plots_change_no_result_and_are_not_in_the_fingerprint(self) -> None:
        for name, options in (
            ("experts", experts.StepOptions(**IDS, cluster_run_id="c")),
            ("baseline", baseline.StepOptions(**IDS, system="single_lora", asr_run_id="a")),
        ):
            changed = dataclasses.replace(options, num_workers=3, no_plot=True)
            assert fingerprint(name, options).digest == fingerprint(name, changed).digest
        assert "gradient_accumulation_steps" in {field.name for field in dataclasses.fields(ComputeOptions)}

    @pytest.mark.parametrize(
        ("n_seen", "n_utterances", "expected"),
        [(48, 24, 4), (24, 24, 2), (60, 24, 5), (16, 24, 1), (1, 24, 1), (2000, 1000, 126)],
    )
    def test_one_lora_sees_as_many_utterances_as_the_mixture(self, n_seen: int, n_utterances: int, expected: int) -> None:
        """Batches of 16; an epoch of 24 takes two updates, the second of which is short."""
        assert baseline.updates_for(n_seen, n_utterances, plan(batch_size=16)) == expected

    def test_clusters_of_unknown_utterances_and_empty_experts_are_refused(self) -> None:
        labels, rows = pd.DataFrame({"utterance_id": ["a"], "cluster": [1]}), pd.DataFrame({"utterance_id": ["a", "b"]})
        with pytest.raises(ValueError, match=r"1 utterances have no cluster, e.g. \['b'\]"):
            experts._clusters(labels, rows)
        with pytest.raises(ValueError, match=r"experts \[0, 2\] have no training utterance among 2"):
            experts._refuse_empty(np.array([1, 1]), 3)

    def test_asr_says_which_runs_it_lacks(self) -> None:
        with pytest.raises(ValueError, match="cluster_run_id is missing; gate_run_id is missing; experts_run_id is missing"):
            asr.StepOptions(**IDS)
        with pytest.raises(ValueError, match="num_experts=none: skip_pretraining=true has no clusters to count"):
            asr.StepOptions(**IDS, skip_pretraining=True)
        with pytest.raises(ValueError, match="skip_pretraining=true reads none of"):
            asr.StepOptions(**IDS, skip_pretraining=True, num_experts=2, gate_run_id="a")


class TestEvaluation:
    WER = {"learned": 0.20, "random": 0.30, "uniform": 0.25, "oracle": 0.20, "cluster": 0.21, "expert_0": 0.4}

    @pytest.mark.parametrize(
        ("changes", "earns_its_keep", "gate_at_fault"),
        [({}, True, False), ({"learned": 0.25}, False, True), ({"oracle": 0.15}, True, True)],
    )
    def test_the_diagnosis_says_what_is_at_fault(self, changes: dict, earns_its_keep: bool, gate_at_fault: bool) -> None:
        said = diagnosis(self.WER | changes)
        assert said.startswith("Routing: ")
        assert ("beats random and uniform" in said) == earns_its_keep
        assert ("does not clearly beat random or uniform" in said) == (not earns_its_keep)
        assert ("A better gate would gain" in said) == gate_at_fault

    def test_the_best_of_a_system_is_the_one_with_the_fewest_errors(self) -> None:
        systems = [a_system("single_lora", 1, "a"), a_system("whisper_moe", 4, "b"), a_system("whisper_moe", 3, "c")]
        assert judging.best_system(systems, "whisper_moe").run_id == "c" and judging.best_system(systems).run_id == "a"
        with pytest.raises(
            ValueError, match="register_system=whisper_moe: none of the 1 evaluate runs scored it, they scored single_lora"
        ):
            judging.best_system(systems[:1], "whisper_moe")


def a_system(system: str, n_errors: int, run_id: str) -> SystemScores:
    hypotheses = pd.DataFrame({"word_errors": [n_errors], "n_words": [10]})
    return SystemScores(system, run_id, system, "candidate", hypotheses)


def test_the_base_is_trained_on_the_etiologies_named_and_on_no_other() -> None:
    rows = pd.DataFrame({"utterance_id": ["a", "b"], "split": ["train"] * 2, "etiology": ["adult", "child"]})
    corpus = prepared(rows, Path("root"))
    chosen = pretrain._chosen(
        corpus,
        "train",
        pretrain.StepOptions(prepare_run_id="p", init_from="scratch", tokenizer="characters", pretrain_etiologies="adult"),
    )
    assert chosen["utterance_id"].tolist() == ["a"]
    with pytest.raises(ValueError, match="pretrain_etiologies=stroke: not in the train split, which has adult, child"):
        pretrain._chosen(
            corpus,
            "train",
            pretrain.StepOptions(
                prepare_run_id="p", init_from="scratch", tokenizer="characters", pretrain_etiologies="adult, stroke"
            ),
        )


class TestRawReferences:
    """`references=raw`: a model learns casing and punctuation, and the test split is scored as before."""

    def test_train_and_dev_are_as_written_and_test_is_as_scored(self, tmp_path: Path) -> None:
        manifest = a_manifest().assign(transcript="Anna  asked: “Why?”", reference="anna asked why", language="en")
        normalised = prepared(manifest, tmp_path)
        raw = dataclasses.replace(normalised, references="raw")
        for split in ("train", "dev"):
            assert set(raw.rows(split)["reference"]) == {"Anna asked: “Why?”"}
            assert set(normalised.rows(split)["reference"]) == {"anna asked why"}
        assert set(raw.rows("test")["reference"]) == {"anna asked why"}
        assert raw.label_normaliser == "raw" and normalised.label_normaliser == "basic" == raw.normaliser

    @pytest.mark.parametrize("step", [step for step in STAGES if hasattr(step, "log_system")])
    def test_a_served_model_of_every_system_writes_what_it_learnt_to_write(self, step: ModuleType) -> None:
        source = inspect.getsource(step)
        assert "prepared.label_normaliser" in source and "prepared.normaliser" not in source

    def test_marks_that_a_normaliser_removes_are_not_learnt(self) -> None:
        with pytest.raises(
            ValueError, match="references=raw: a model would learn to write the marks that normaliser=sap removes"
        ):
            prepare.StepOptions(dataset_root="x", references="raw", normaliser="sap")
