"""The quality table: which variants there are, what they share, and how what they scored is laid side by side."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.systems import SystemScores
from benchmarks.quality import BASE_MODEL, DEFAULT, ONE_LORA, QualityOptions, check, jobs, record, rows, variants
from steps import experts
from steps.chain.stages import n_experts, stage_options
from steps.tracking.fingerprint import fingerprint


def scored(name: str, seed: int, wrong: dict[str, int]) -> SystemScores:
    """Three utterances of four words by three speakers, of which some are wrong."""
    table = [
        {"utterance_id": speaker, "speaker": speaker, "etiology": "als", "reference": "a b c d", "duration_s": 1.0,
         "hypothesis": " ".join(["x"] * wrong.get(speaker, 0) + ["a b c d".split()[n] for n in range(wrong.get(speaker, 0), 4)])}
        for speaker in ("s0", "s1", "s2")
    ]  # fmt: skip
    metadata = {"normaliser": "basic", "test_set_digest": "d", "seed": seed, "seconds": 2.0, "gating_accuracy": None}
    return SystemScores(name, f"{name}{seed}", "whisper_moe", "mixture", pd.DataFrame(table), metadata=metadata)


def test_one_option_changes_at_a_time_and_all_else_is_as_given() -> None:
    given = QualityOptions(top_k=4, seeds="1")
    found = variants(given)
    assert list(found)[0] == DEFAULT and "top_k=4" not in found and found["top_k=all"].top_k == n_experts(given)
    assert {"audio_context=full", "mixing=loss", "gate_layer=1", "gate_layer=3", "gate_layer=last", "top_k=1", "top_k=2"} <= set(
        found
    )
    for name, variant in found.items():
        changed = {
            field.name for field in dataclasses.fields(given) if getattr(given, field.name) != getattr(variant, field.name)
        }
        along = {"skip_pretraining=true": {"num_experts", "asr_epochs"}, "experts_init=shared": {"shared_epochs"}}.get(
            name, set()
        )
        assert changed == (along | {name.partition("=")[0]} if name != DEFAULT else set())
    assert found["skip_pretraining=true"].asr_epochs == given.expert_epochs + given.asr_epochs  # as many updates


def test_the_same_variant_is_not_run_under_two_names() -> None:
    found = variants(QualityOptions(num_experts=4, only="top_k"))
    assert list(found) == [DEFAULT, "top_k=1", "top_k=4"]  # all experts are four


def test_what_no_variant_would_use_is_refused() -> None:
    check(QualityOptions(only="none"))
    with pytest.raises(ValueError, match="until=gate, max_group_regression=0.1: no effect here"):
        check(QualityOptions(until="gate", max_group_regression=0.1))


def test_nothing_need_be_changed() -> None:
    assert [name for name, _, _ in jobs(QualityOptions(seeds="7", only="none"))] == [DEFAULT, BASE_MODEL, ONE_LORA]


def test_a_variant_that_cannot_be_is_left_out() -> None:
    assert list(variants(QualityOptions(expert_epochs=1, only="experts_init"))) == [DEFAULT]
    assert variants(QualityOptions(expert_epochs=2, only="experts_init"))["experts_init=shared"].shared_epochs == 1


def test_a_whole_table_is_there_after_the_first_seed_and_one_corpus_serves_all() -> None:
    found = jobs(QualityOptions(seeds="7,8", only="mixing, top_k"))
    assert [(name, seed) for name, seed, _ in found]== [
        (DEFAULT, 7), (BASE_MODEL, 7), (ONE_LORA, 7), ("mixing=loss", 7), ("top_k=1", 7), ("top_k=4", 7), ("top_k=all", 7),
        (DEFAULT, 8), (ONE_LORA, 8), ("mixing=loss", 8), ("top_k=1", 8), ("top_k=4", 8), ("top_k=all", 8),
    ]  # fmt: skip
    assert {variant.corpus_seed for _, _, variant in found} == {42} and not any(variant.ablations for _, _, variant in found)


def test_variants_that_differ_in_k_or_mixing_share_their_expert_training() -> None:
    digests = set()
    for _, _, variant in jobs(QualityOptions(seeds="7", only="mixing,top_k")):
        digests.add(
            fingerprint(
                "experts", stage_options(experts, variant, cluster_run_id="c", prepare_run_id="p", pretrain_run_id="b")
            ).digest
        )
    assert len(digests) == 1
    other = stage_options(experts, QualityOptions(gate_layer="1"), cluster_run_id="c", prepare_run_id="p", pretrain_run_id="b")
    assert fingerprint("experts", other).digest not in digests


@pytest.mark.parametrize(("given", "said"), [({"seeds": "1,x"}, "seeds=1,x"), ({"only": "mixing,colour"}, "only=mixing,colour")])
def test_what_cannot_be_compared_is_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QualityOptions(**given)


def test_a_base_that_each_variant_would_make_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make it once"):
        QualityOptions(init_from=str(tmp_path), tokenizer="characters")


def test_rates_are_pooled_over_seeds_and_compared_over_those_that_both_have() -> None:
    found = [scored(DEFAULT, 0, {"s0": 2}), scored("other", 0, {"s0": 3}), scored(DEFAULT, 1, {"s0": 4})]
    default, other, lora = rows([*found, scored(ONE_LORA, 1, {"s0": 3})])
    assert default["wer"][0] == pytest.approx(3 / 12) and default["seeds"] == {"0": 2 / 12, "1": 4 / 12}
    assert other["wer"][0] == pytest.approx(3 / 12) and other["against"][DEFAULT][0] == pytest.approx(
        1 / 12
    )  # seed 0 against seed 0
    assert default["against"][ONE_LORA][0] == pytest.approx(1 / 12) and lora["against"][DEFAULT][0] == pytest.approx(-1 / 12)
    assert DEFAULT not in default["against"] and ONE_LORA not in other["against"]  # no seed that both have
    assert default["seconds"] == 2.0 and default["gating_accuracy"] is None


def test_a_second_corpus_joins_the_table_and_the_same_one_takes_its_own_place(tmp_path: Path) -> None:
    first, second = QualityOptions(seeds="0"), QualityOptions(corpus="folder", dataset_root=str(tmp_path / "words"), seeds="0")
    record(tmp_path / "quality", first, rows([scored(DEFAULT, 0, {"s0": 1})]))
    record(tmp_path / "quality", second, rows([scored(DEFAULT, 0, {"s0": 2})]))
    text = record(tmp_path / "quality", first, rows([scored(DEFAULT, 0, {"s0": 4})]))
    lines = [line for line in text.splitlines() if line.startswith(("| synthetic", "| words"))]
    assert [line.split("|")[3].strip().split(" ")[0] for line in lines] == ["33.3", "16.7"]
    assert list(json.loads((tmp_path / "quality.json").read_text())) == ["synthetic", "words"]
    assert (tmp_path / "quality.md").read_text() == text
