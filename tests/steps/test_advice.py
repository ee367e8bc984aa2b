"""A refusal's advice, followed to the letter, leads on: each is provoked, the option it names is set, and nothing is refused any more."""

import dataclasses
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ClusteringOptions
from moe.corpora.splits import SplitPlan, assign_splits
from moe.corpora.subsets import at_most
from moe.options import is_required
from moe.systems.whisper.base_model import save_base
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.training.dataset import SpeechDataset
from steps import asr, baseline, cluster, compare, embed, experts, main, prepare, pretrain, synthesize, transcribe
from tests.toys.models import shared_base, write_corpus

Options = dict[str, Any]
FOLDER = {"corpus": "folder", "dataset_root": "data"}
MIXTURE = {"cluster_run_id": "c", "gate_run_id": "g", "experts_run_id": "e"}
UNTAUGHT = MIXTURE | {"top_k": 1, "balance": "none"}
RANDOM = {"skip_pretraining": True, "num_experts": 4, "top_k": 1, "balance": "none"}
TEACHERS = ({"balance": "kl"}, {"minimum_usage": 0.1}, {"entropy_coefficient": 0.1}, {"soft_epochs": 1})

# the step, options that are refused, what the refusal says to set, and that
ADVICE: list[tuple[ModuleType, Options, str, Options]] = [
    (main, {"skip_pretraining": True}, "num_experts=none: .* give a number", {"num_experts": 4}),
    (main, {"skip_pretraining": True, "num_experts": "auto"}, "num_experts=auto: .* give a number", {"num_experts": 2}),
    (main, {"corpus": "folder"}, "dataset_root is missing", {"dataset_root": "data"}),
    (main, {"noise": "uniform"}, "noise=uniform: only clustering_algorithm=hdbscan has it", {"clustering_algorithm": "hdbscan"}),
    (prepare, {"corpus": "folder"}, "dataset_root is missing", {"dataset_root": "data"}),
    (prepare, {"corpus": "synthetic"}, "synthesize_run_id is missing", {"synthesize_run_id": "s"}),
    (prepare, FOLDER | {"split": "leave_one_speaker_out"}, "test_speaker is missing", {"test_speaker": "s1"}),
    (prepare, FOLDER | {"split": "k_fold", "fold": 7}, "fold=7: must be below n_folds=5", {"fold": 4}),
    (prepare, FOLDER | {"min_duration_s": 40.0}, "min_duration_s=40 must be below max_duration_s=30", {"min_duration_s": 29.0}),
    (synthesize, {"alignments": True}, "alignments=true .* only styles=typical", {"styles": "typical"}),
    (pretrain, {"prepare_run_id": "p", "init_from": "scratch"}, "tokenizer=checkpoint: .* use characters or bpe", {"tokenizer": "characters"}),
    (pretrain, {"prepare_run_id": "p", "init_from": "scratch"}, "tokenizer=checkpoint: .* use characters or bpe", {"tokenizer": "bpe"}),
    (pretrain, {"prepare_run_id": "p", "init_from": "scratch", "tokenizer": "bpe", "pretrain_updates": 0}, "pretrain_updates=0: .* at least 1", {"pretrain_updates": 1}),
    (embed, {"pooling": "none"}, "pooling=none: .* use mean, mean_std or flatten", {"pooling": "mean"}),
    (embed, {"pooling": "none"}, "pooling=none: .* use mean, mean_std or flatten", {"pooling": "mean_std"}),
    (embed, {"pooling": "none"}, "pooling=none: .* use mean, mean_std or flatten", {"pooling": "flatten"}),
    (cluster, {"no_reduce_experts": True, "num_experts": "auto"}, "no_reduce_experts=true: needs a number in num_experts", {"num_experts": 4}),
    (cluster, {"num_experts": 1}, "min_experts=2: must be at most num_experts=1", {"min_experts": 1}),
    (cluster, {"num_experts": 1, "min_experts": 1, "clustering_algorithm": "hdbscan", "noise": "own_expert"}, "noise=own_expert with num_experts=1: .* 2 at least",
     {"num_experts": 2}),
    (cluster, {"reduce": "none", "reduce_dim": 9}, "reduce_dim=9: reduce=none keeps all", {"reduce_dim": 50}),
    (experts, {"experts_init": "shared"}, "experts_init=shared: shared_epochs=0", {"shared_epochs": 1, "shared_r": 4}),
    (experts, {"experts_init": "shared", "shared_epochs": 1, "shared_r": 8, "lora_r": 4}, "shared_r=8 must be lora_r=4", {"shared_r": 4}),
    (experts, {"shared_r": 8, "shared_expert": False}, "shared_r=8: shared_expert=false", {"shared_expert": True}),
    (experts, {"shared_epochs": 6}, "shared_epochs=6: leaves none of expert_epochs=6", {"expert_epochs": 7}),
    (experts, {"speed_factors": "0.9,1.1"}, "speed_factors=0.9,1.1: needs augment=true", {"augment": True}),
    (experts, {"gate_scaling": "probability", "mixing": "loss"}, "gate_scaling=probability with mixing=loss", {"mixing": "delta"}),
    (asr, {"skip_pretraining": True}, "num_experts=none: .* give a number", {"num_experts": 4}),
    (asr, MIXTURE | {"num_experts": 4}, "num_experts=4: only skip_pretraining=true has it", {"num_experts": None}),
    (asr, {"skip_pretraining": True, "num_experts": 2, "top_k": 3}, "top_k=3: num_experts=2", {"top_k": 2}),
    (asr, MIXTURE | {"temperature_start": 2.0}, "temperature_start=2 has no effect without soft_epochs", {"soft_epochs": 1}),
    (asr, MIXTURE | {"minimum_usage_coefficient": 0.2}, "minimum_usage_coefficient=0.2: minimum_usage=0", {"minimum_usage": 0.1}),
    *[(asr, UNTAUGHT, "top_k=1 gives the gate no gradient", way) for way in (*TEACHERS, {"gate_scaling": "probability"}, {"freeze_gate": True},
                                                                             {"alignment_coefficient": 0.1})],
    *[(asr, UNTAUGHT | {"mixing": "loss"}, "top_k=1 gives the gate no gradient", way) for way in (*TEACHERS, {"freeze_gate": True})],
    *[(asr, RANDOM, "top_k=1 gives the gate no gradient", way) for way in (*TEACHERS, {"gate_scaling": "probability"})],
    (baseline, {"system": "single_lora"}, "asr_run_id is missing", {"asr_run_id": "a"}),
    (compare, {"evaluate_run_ids": "one"}, "evaluate_run_ids=one: must be two or more", {"evaluate_run_ids": "one,two"}),
    (transcribe, {}, "audio is missing", {"audio": "a.wav"}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize(("step", "given", "words", "then"), ADVICE)
def test_the_option_that_a_refusal_names_ends_it(step: ModuleType, given: Options, words: str, then: Options) -> None:
    with pytest.raises(ValueError) as refusal:
        check(step, given)
    assert re.search(words, said := str(refusal.value)) and all(name in said for name in then), said
    check(step, given | then)


@pytest.mark.parametrize(
    "given",
    [
        UNTAUGHT,
        UNTAUGHT | {"mixing": "loss"},
        UNTAUGHT | {"balance": "kl", "balance_coefficient": 0.0},
        UNTAUGHT | {"gate_learning_rate": 1e-4},
        RANDOM,
    ],
)
def test_every_way_to_teach_a_gate_that_is_named_is_one(given: Options) -> None:
    """Not all are at hand with other options: a random gate that is frozen stays random, a mixture of losses allows no scaling."""
    with pytest.raises(ValueError) as refusal:
        check(asr, given)
    ways = re.findall(r"(\w+)=([\w.]+)", str(refusal.value).partition("set ")[2])
    assert len(ways) >= 4
    for name, text in ways:
        values = {"true": True}
        check(asr, given | {name: values.get(text) or (float(text) if "." in text else int(text) if text.isdigit() else text)})


def check(step: ModuleType, given: Options) -> None:
    """As the step's command line does before any work; `main` asks all its stages too. Runs to read from are given where they are required."""
    upstream = {
        field.name: "r" for field in dataclasses.fields(step.StepOptions) if is_required(field) and field.name.endswith("_run_id")
    }
    options = step.StepOptions.asked(**upstream | given)
    if step is main:
        main.check_stages(options)


class TestData:
    """Refusals that the data give."""

    def speakers(self, n: int, **columns: Any) -> pd.DataFrame:
        rows = [
            {
                "utterance_id": f"u{i}",
                "speaker": f"s{i % n}",
                "etiology": "als",
                "severity": np.nan,
                "split": "",
                "reference": "a",
            }
            for i in range(4 * n)
        ]
        return pd.DataFrame(rows).assign(**columns)

    @pytest.mark.parametrize(
        ("n", "plan", "words", "then"),
        [
            (4, {"mode": "own"}, "use split=by_speaker", {"mode": "by_speaker"}),
            (2, {"mode": "by_speaker"}, "2 speakers .* needs at least 3, or dev_share=0", {"dev_share": 0.0}),
            (4, {"mode": "k_fold", "n_folds": 5}, "n_folds=5: .* only 4 speakers", {"n_folds": 4}),
            (
                2,
                {"mode": "leave_one_speaker_out", "test_speaker": "s0"},
                "at least 2 are needed, or dev_share=0",
                {"dev_share": 0.0},
            ),
            (
                4,
                {"mode": "leave_one_speaker_out", "test_speaker": "x"},
                "the corpus's speakers are s0, s1",
                {"test_speaker": "s0"},
            ),
        ],
    )
    def test_a_split_that_cannot_be_made(self, n: int, plan: Options, words: str, then: Options) -> None:
        with pytest.raises(ValueError, match=words):
            assign_splits(self.speakers(n), SplitPlan(**plan))
        assign_splits(self.speakers(n), SplitPlan(**plan | then))

    def test_fewer_samples_than_groups(self) -> None:
        manifest = self.speakers(4, split=["train", "dev", "test", "train"] * 4)
        with pytest.raises(ValueError, match="max_samples=2: must be at least 3"):
            at_most(manifest, 2, 0)
        assert len(at_most(manifest, 3, 0)) == 3

    def test_too_few_units_for_umap(self) -> None:
        vectors, options = (
            np.random.default_rng(0).normal(size=(4, 6)),
            {"num_experts": 2, "cluster_unit": "utterance", "reduce_dim": 3},
        )
        with pytest.raises(ValueError, match="reduce=umap with 4 units: needs at least 5; use reduce=pca$"):
            UtteranceClusters(ClusteringOptions(**options, reduce="umap")).fit(vectors, list("abcd"))
        UtteranceClusters(ClusteringOptions(**options, reduce="pca")).fit(vectors, list("abcd"))

    def test_a_speaker_in_two_splits(self) -> None:
        table = self.speakers(4, split=["train", "dev", "test", "train"] * 3 + ["test"] * 4)
        with pytest.raises(ValueError, match="speaker leak: .*split=by_speaker makes a speaker-disjoint split"):
            assign_splits(table, SplitPlan("own"))
        split = assign_splits(table, SplitPlan("by_speaker"))
        assert table.assign(split=split).groupby("speaker")["split"].nunique().eq(1).all()

    def test_a_partial_base(self, tmp_path: Path) -> None:
        save_base(shared_base(), tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["model.decoder.layer_norm.bias"]
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="partial, 1 tensors are missing .*; name it as init_from instead"):
            pretrain.StepOptions(whisper_model=str(tmp_path), prepare_run_id="p")
        assert not pretrain.StepOptions(init_from=str(tmp_path), prepare_run_id="p").is_taken

    def test_a_base_that_is_made_of_no_corpus(self) -> None:
        made = {"init_from": "scratch", "tokenizer": "bpe"}
        with pytest.raises(ValueError, match="prepare_run_id is missing"):
            pretrain.StepOptions(**made)
        pretrain.StepOptions(**made, prepare_run_id="p")

    def test_utterances_longer_than_the_bases_window(self, tmp_path: Path) -> None:
        rows, inputs = write_corpus(tmp_path), WhisperInputs(shared_base().processor, AudioContextOptions())
        long = rows.assign(duration_s=np.where(rows.index == 0, 99.0, rows["duration_s"]))
        with pytest.raises(
            ValueError, match=r"1 utterances are longer .*; prepare the corpus with max_duration_s=\d+"
        ) as refusal:
            SpeechDataset(long, tmp_path, inputs)
        most = float(str(refusal.value).rpartition("=")[2])
        assert len(SpeechDataset(long[long["duration_s"] <= most], tmp_path, inputs)) == len(rows) - 1
