"""The quality table: which variants there are, what they share, and how what they scored is laid side by side."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.error_rates import count_errors
from analysis.systems import SystemScores
from benchmarks.quality.__main__ import check, verdict_of
from benchmarks.quality.folds import group_rows, joined
from benchmarks.quality.notes import read_note, write_note
from benchmarks.quality.pays import PaysOptions, conditions
from benchmarks.quality.table import LORA_COLUMN, record, rows
from benchmarks.quality.variants import (
    BASE_MODEL,
    DEFAULT,
    ONE_LORA,
    QualityOptions,
    jobs,
    rows_of,
    system_of,
    variants,
)
from moe.synthesis.planning import SynthesisOptions, plan
from steps import baseline, experts
from steps.chain.branches import lora_given
from steps.chain.stages import n_experts, stage_options
from steps.tracking.fingerprint import fingerprint

RANKS = {"lora_r", "shared_r", "lora_alpha", "num_experts"}


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
        option, along = (
            name.partition("=")[0],
            {
                "skip_pretraining": {"num_experts", "asr_epochs"},
                "experts_init": {"shared_epochs", "lora_r", "shared_r", "lora_alpha"},
            },
        )
        if option == "rank_and_epochs":
            assert (variant.expert_epochs, variant.lora_r, variant.shared_r) == (12, 8, 64)
        elif option == "left_out":
            assert changed == {"exclude_etiology"}
        elif option in ("shared_share", "adapter_rank", "num_experts"):
            assert changed <= RANKS and changed, "a total is divided by the ranks, at one scale"
        else:
            assert changed == (along.get(option, set()) | {option} if name != DEFAULT else set())
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


def difference(row: dict, name: str) -> float:
    return row["against"][name]["value"]


def test_rates_are_pooled_over_seeds_and_compared_over_those_that_both_have() -> None:
    found = [scored(DEFAULT, 0, {"s0": 2}), scored("other", 0, {"s0": 3}), scored(DEFAULT, 1, {"s0": 4})]
    default, other, lora = rows([*found, scored(ONE_LORA, 1, {"s0": 3})])
    assert default["wer"][0] == pytest.approx(3 / 12) and default["seeds"] == {"0": 2 / 12, "1": 4 / 12}
    assert other["wer"][0] == pytest.approx(3 / 12) and difference(other, DEFAULT) == pytest.approx(
        1 / 12
    )  # seed 0 against seed 0
    assert difference(default, LORA_COLUMN) == pytest.approx(1 / 12) and difference(lora, DEFAULT) == pytest.approx(-1 / 12)
    assert DEFAULT not in default["against"] and LORA_COLUMN not in other["against"]  # no seed that both have
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


def test_a_change_of_one_lora_too_is_measured_against_that_one() -> None:
    options = QualityOptions(seeds="3", only="averaging,top_k")
    names = [name for name, _, _ in jobs(options)]
    assert f"{ONE_LORA}, averaging=ema" in names and f"{ONE_LORA}, top_k=1" not in names
    averaged = rows_of(options)[f"{ONE_LORA}, averaging=ema"]
    assert averaged == rows_of(options)["averaging=ema"] and averaged.averaging == "ema"
    found = [
        scored("averaging=ema", 0, {"s0": 2}),
        scored(ONE_LORA, 0, {"s0": 1}),
        scored(f"{ONE_LORA}, averaging=ema", 0, {"s0": 3}),
    ]
    assert difference(rows(found)[0], LORA_COLUMN) == pytest.approx(-1 / 12)
    assert difference(rows(found[:2])[0], LORA_COLUMN) == pytest.approx(1 / 12)  # until that one is there


def test_people_of_their_own_ways_are_a_cohort_of_their_own() -> None:
    found = []
    for name, wrong in ((DEFAULT, {"s0": 4}), (ONE_LORA, {"s1": 2})):
        one = scored(name, 0, wrong)
        found.append(dataclasses.replace(one, hypotheses=one.hypotheses.assign(etiology=["own_ways", "als", "als"])))
    row = rows(found)[0]
    assert row["own_ways"][0] == 1 and row["wer"][0] == 0 and row["seeds"] == {"0": 0}
    assert difference(row, LORA_COLUMN) == pytest.approx(-2 / 8)
    assert row["own_ways_against"][LORA_COLUMN]["value"] == pytest.approx(1)


def test_the_same_total_rank_is_divided_at_the_same_scale() -> None:
    given = QualityOptions(only="shared_share,adapter_rank,num_experts", lora_r=4, shared_r=32, lora_alpha=8)
    for name, variant in variants(given).items():
        n = variant.num_experts or 6
        total = variant.shared_r + n * variant.lora_r
        assert total == (int(name.partition("=")[2]) if name.startswith("adapter_rank") else 56), name
        assert variant.lora_alpha / variant.lora_r == 2


def test_one_lora_has_the_size_and_the_epochs_of_its_row() -> None:
    options = QualityOptions(only="trainings,rank_and_epochs,averaging", lora_r=4, shared_r=32, lora_alpha=8)
    found = {name: stage_options(baseline, row, prepare_run_id="p", pretrain_run_id="b", **lora_given(row))
             for name, row in rows_of(options).items() if name.startswith(ONE_LORA)}  # fmt: skip
    assert {(each.adapter_rank, each.lora_epochs, each.trainings, each.lora_alpha / each.lora_r) for each in found.values()} == {
        (56, 7, 1, 2), (112, 14, 2, 2), (112, 14, 1, 2)
    }  # fmt: skip
    assert found[f"{ONE_LORA}, averaging=ema"].averaging == "ema"


def test_some_rows_are_evaluated_in_a_process_of_their_own() -> None:
    options = QualityOptions(seeds="1,2", only="top_k", rows="top_k=1; base model")
    assert [(name, seed) for name, seed, _ in jobs(options)] == [("base model", 1), ("top_k=1", 1), ("top_k=1", 2)]
    with pytest.raises(ValueError, match="rows=top_k=9: there are as given; base model; one LoRA, same size; top_k=1"):
        jobs(QualityOptions(only="top_k", rows="top_k=9"))
    with pytest.raises(ValueError, match="rows and gather=true contradict each other"):
        QualityOptions(rows="top_k=1", gather=True)


def test_the_test_set_is_large_enough_to_see_with() -> None:
    options = QualityOptions()
    speakers = [each for each in plan(options.part(SynthesisOptions)) if each.split == "test"]
    own = [each for each in speakers if each.speaker.etiology == "own_ways"]
    assert len(speakers) - len(own) >= 160 and len(own) >= 40


def test_a_note_gives_the_scores_again_whatever_the_table_says_of_them(tmp_path: Path) -> None:
    job = jobs(QualityOptions(seeds="0", only="top_k"))[0]
    one = scored(DEFAULT, 0, {"s0": 2})
    one = dataclasses.replace(
        one, hypotheses=count_errors(one.hypotheses).assign(weight_0=0.5), metadata={**one.metadata, "dev_wer": 0.25}
    )
    assert read_note(tmp_path / "quality", job) is None
    write_note(tmp_path / "quality", job, one)
    again = read_note(tmp_path / "quality", job)
    assert again is not None and rows([again]) == rows([one]) and "weight_0" not in again.hypotheses
    other = jobs(QualityOptions(seeds="0", only="top_k", top_k=4))[0]
    assert read_note(tmp_path / "quality", other) is None, "other options, another row"
    elsewhere = jobs(QualityOptions(seeds="0,1", only="averaging", n_workers=3))[0]
    assert read_note(tmp_path / "quality", elsewhere) is not None, "no score depends on these"


def test_where_routing_pays_is_asked_of_corpora_that_differ_in_one_thing() -> None:
    options = PaysOptions(seeds="0")
    found = conditions(options)
    assert len(found) == 8 and len({(value.n_utterances, value.articulation_strength) for value in found.values()}) == 7
    for (name, value), condition in found.items():
        assert getattr(condition, name) == value
        assert [row for row, _, _ in jobs(condition)] == [DEFAULT, ONE_LORA] and condition.experts_percent == 100
    assert list(conditions(PaysOptions(condition="n_utterances=8"))) == [("n_utterances", 8)]
    with pytest.raises(ValueError, match="condition=n_utterances=9: there are n_utterances=8"):
        PaysOptions(condition="n_utterances=9")
    with pytest.raises(ValueError, match="rows=x: alike in all conditions"):
        PaysOptions(rows="x")


def fold(name: str, number: int, wrong: dict[str, int], seed: int = 0) -> SystemScores:
    """A row's scores on a test set of its own."""
    one = scored(name, seed, wrong)
    table = one.hypotheses.assign(
        **{key: [f"f{number}{value}" for value in one.hypotheses[key]] for key in ("utterance_id", "speaker")}
    )
    return dataclasses.replace(one, hypotheses=table, metadata={**one.metadata, "test_set_digest": f"d{number}"})


def test_folds_are_one_test_set() -> None:
    ours, lora = joined(
        [fold(DEFAULT, 0, {"s0": 2}), fold(ONE_LORA, 1, {"s1": 1}), fold(DEFAULT, 1, {"s1": 4}), fold(ONE_LORA, 0, {})]
    )
    assert (len(ours.hypotheses), ours.metadata["test_set_digest"]) == (6, lora.metadata["test_set_digest"])
    default, _ = rows([ours, lora])
    assert default["wer"][0] == pytest.approx(6 / 24) and difference(default, LORA_COLUMN) == pytest.approx(5 / 24)
    groups = {line["variant"]: line for line in group_rows([ours, lora])}
    assert groups[DEFAULT]["WER"].startswith("25.0 %") and groups[DEFAULT]["against its one LoRA"].startswith("+20.8")
    assert groups[ONE_LORA]["against its one LoRA"] == "–"


def test_a_row_that_lacks_a_fold_or_has_it_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="one LoRA, same size, seed 0: 1 of 2 folds"):
        joined([fold(DEFAULT, 0, {}), fold(DEFAULT, 1, {}), fold(ONE_LORA, 0, {})])
    with pytest.raises(ValueError, match="as given, seed 0: evaluated twice"):
        joined([fold(DEFAULT, 0, {}), fold(DEFAULT, 0, {"s0": 1})])


def test_each_etiology_is_left_out_of_mixture_and_lora_alike() -> None:
    found = rows_of(QualityOptions(seeds="0", only="left_out"))
    etiologies = {"parkinsons", "als", "cp", "stroke", "down"}
    for name, of in (("left_out={}", "whisper_moe"), (f"{ONE_LORA}, left_out={{}}", "single_lora")):
        for etiology in etiologies:
            row = name.format(etiology)
            assert found[row].exclude_etiology == etiology and system_of(row) == of
    assert {row.exclude_etiology for row in found.values()} == etiologies | {None} and len(found) == 3 + 2 * len(etiologies)
    few = rows_of(QualityOptions(only="left_out", styles="typical,als"))
    assert [name for name in few if "left_out" in name] == ["left_out=als", f"{ONE_LORA}, left_out=als"]


def test_etiologies_of_another_corpus_are_not_known() -> None:
    with pytest.raises(ValueError, match="only=left_out: the etiologies of the synthetic corpus; of corpus=folder"):
        QualityOptions(corpus="folder", only="left_out")
    assert not any("left_out" in name for name in variants(QualityOptions(corpus="folder")))


def spoken(name: str, wrong: dict[str, int], seed: int = 0) -> SystemScores:
    """Speaker s0 has ALS, s1 CP, and s2 a way of their own."""
    one = scored(name, seed, wrong)
    return dataclasses.replace(one, hypotheses=one.hypotheses.assign(etiology=["als", "cp", "own_ways"]))


def test_what_was_trained_without_an_etiology_is_scored_on_its_speakers_alone() -> None:
    found = [
        spoken("left_out=als", {"s0": 3, "s1": 4, "s2": 4}),
        spoken(f"{ONE_LORA}, left_out=als", {"s0": 1}),
        spoken(DEFAULT, {"s1": 4}),
        spoken(ONE_LORA, {"s0": 4}),
    ]
    ours, lora, *_ = rows(found)
    assert ours["wer"][0] == pytest.approx(3 / 4) and ours["seeds"] == {"0": 0.75} and ours["own_ways"] is None
    assert difference(ours, LORA_COLUMN) == pytest.approx(2 / 4) and difference(ours, DEFAULT) == pytest.approx(3 / 4)
    assert difference(lora, LORA_COLUMN) == pytest.approx(-3 / 4), "what it costs one LoRA not to have known them"
    alone = rows([found[0], *found[2:]])[0]
    assert LORA_COLUMN not in alone["against"], "one LoRA that knew them is no control"
    assert verdict_of(found) == "", "nothing here is one LoRA's"
    loras = [dataclasses.replace(one, system="single_lora") for one in found if one.name.startswith(ONE_LORA)]
    assert ONE_LORA in (said := verdict_of([*found[::2], *loras])) and "left_out" not in said


def test_all_left_out_rows_together_score_each_speaker_by_the_row_that_did_not_know_them() -> None:
    found = [
        spoken("left_out=als", {"s0": 3, "s1": 4}),
        spoken("left_out=cp", {"s0": 4, "s1": 1}),
        spoken(f"{ONE_LORA}, left_out=als", {"s0": 1}),
        spoken(DEFAULT, {}),
    ]
    assert [row["variant"] for row in rows(found)][-1] == "left_out=each" and LORA_COLUMN not in rows(found)[-1]["against"]
    found.append(spoken(f"{ONE_LORA}, left_out=cp", {"s1": 2}))
    ours, lora = rows(found)[-2:]
    assert (ours["variant"], lora["variant"]) == ("left_out=each", f"{ONE_LORA}, left_out=each")
    assert ours["wer"][0] == pytest.approx(4 / 8) and lora["wer"][0] == pytest.approx(3 / 8)
    assert difference(ours, LORA_COLUMN) == pytest.approx(1 / 8) and difference(ours, DEFAULT) == pytest.approx(4 / 8)
    assert not any("each" in row["variant"] for row in rows(found[:1])), "one alone is itself"
