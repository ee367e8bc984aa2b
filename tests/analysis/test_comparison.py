"""Comparing systems: what is refused, what the table holds, what the verdict says."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.comparison import compare
from analysis.error_rates import count_errors, rates_by
from analysis.significance import holm
from analysis.systems import SystemScores, check_comparable, colour_place, colour_places, pool
from analysis.verdict import p_words, size_sentence, test_of

test_of.__test__ = False  # a function of the package, not a test
METADATA = {"normaliser": "basic-1", "test_set_digest": "d1"}


def hypotheses(rate, n_speakers=12, n_each=6, seed=0):
    """Speakers of two etiologies read ten words; each word is lost with the given rate, doubled for ALS."""
    generator, rows = np.random.default_rng(seed), []
    for number in range(n_speakers * n_each):
        words = [f"w{i}" for i in range(10)]
        etiology = ["ALS", "typical"][number % 2]
        kept = [word for word in words if generator.random() >= rate * (1.5 if etiology == "ALS" else 0.5)]
        rows.append({"utterance_id": f"u{number:03d}", "speaker": f"s{number % n_speakers:02d}", "etiology": etiology,
                     "sentence_seen": number % 3 == 0, "reference": " ".join(words), "hypothesis": " ".join(kept)})  # fmt: skip
    return pd.DataFrame(rows)


BASE, LORA, MIXTURE = ("zero_shot", "base"), ("single_lora", "control"), ("whisper_moe", "mixture", "single_lora")


def scores(name, run_id, kind, table, metadata=METADATA, **more):
    """One run of a kind of system: its row in the table of systems, its role and its fair control."""
    return SystemScores(name, run_id, *kind[:2], table, *kind[2:], metadata=metadata, **more)


def system(name, rate, kind=BASE, seed=0, run_id=None, **metadata):
    metadata = {**METADATA, "seed": seed, **metadata}
    return scores(name, run_id or f"run-{name}-{seed}", kind, hypotheses(rate, seed=seed), metadata)


def three():
    return [
        system("base", 0.5, n_trainable=0),
        system("one LoRA", 0.2, LORA, seed=1, n_trainable=100),
        system("mixture", 0.1, MIXTURE, seed=2, n_trainable=100, gating_accuracy=0.9),
    ]


@pytest.fixture(scope="module")
def comparison():
    return compare(three(), n_resamples=2000, note="synthetic speech")


def test_the_table_has_one_row_per_system_with_wer_and_change_against_the_base(comparison):
    table = comparison.table.set_index("system")
    for one in three():
        counted = count_errors(one.hypotheses)
        assert table.loc[one.name, "wer"] == pytest.approx(counted["word_errors"].sum() / counted["n_words"].sum())
    assert table.loc["base", "relative_change"] == 0
    assert table.loc["mixture", "relative_change"] == pytest.approx(table.loc["mixture", "wer"] / table.loc["base", "wer"] - 1)
    assert (table["low"] < table["wer"]).all() and (table["wer"] < table["high"]).all()


def test_every_pair_is_tested_and_corrected_together(comparison):
    assert len(comparison.tests) == 3
    assert (comparison.tests["p_bootstrap_holm"] >= comparison.tests["p_bootstrap"]).all()
    assert (comparison.tests["p_mapsswe_holm"] >= comparison.tests["p_mapsswe"]).all()
    assert (comparison.tests["p_bootstrap_holm"] < 0.01).all()


def many(n):
    return [system("base", 0.5), *(system(f"system {k}", 0.2, LORA, seed=k) for k in range(1, n))]


def test_holm_is_over_the_tests_that_were_asked_for_alone():
    mixture = system("mixture", 0.18, MIXTURE, seed=9)
    found = compare([*many(6), mixture], n_resamples=500, plots=False, against=["whisper_moe"])
    tests = found.tests.set_index(["system", "base"])
    asked = tests[tests["asked"]]
    assert len(tests) == 21 and len(asked) == 6 and all("mixture" in pair for pair in asked.index)
    assert asked["p_bootstrap_holm"].tolist() == pytest.approx(holm(asked["p_bootstrap"]))
    assert tests[~tests["asked"]][["p_bootstrap_holm", "p_mapsswe_holm"]].isna().all().all()
    assert found.verdict.count("against mixture") == 6
    with pytest.raises(ValueError, match="compare_against=nobody: none of the runs scored it; there are zero_shot, single_lora"):
        compare(many(3), plots=False, against=["nobody"])


def test_two_systems_that_are_both_compared_against_meet_once():
    found = compare(three(), n_resamples=200, plots=False, against=["zero_shot", "single_lora"])
    assert len(found.tests[found.tests["asked"]]) == 3 and found.verdict.count(" against ") == 3


def test_what_is_not_significant_says_what_the_test_could_have_seen():
    found = compare([system("base", 0.2), system("mixture", 0.2, MIXTURE, seed=1)], n_resamples=1000, plots=False)
    points = 100 * found.tests["visible"].iloc[0]
    assert f"; this test could have seen {points:.1f} points." in found.verdict
    assert "could have seen" not in compare(three(), n_resamples=500, plots=False).verdict


def test_a_comparison_says_what_its_size_can_show():
    found = compare(three(), n_resamples=500, plots=False)
    size = 100 * test_of(found.tests, "mixture", "one LoRA")["visible"]
    said = size_sentence(found.table, found.tests)
    assert said.startswith("12 test speakers and 1 training of each system") and f"{size:.1f} points between mixture" in said
    pair = compare([system("a", 0.5), system("b", 0.4, seed=1)], n_resamples=200, plots=False)
    assert "between b and a" in size_sentence(pair.table, pair.tests)


def test_the_verdict_names_winner_size_and_certainty(comparison):
    wer = comparison.table.set_index("system")["wer"]
    assert f"Lowest WER: mixture, {100 * wer['mixture']:.1f} %, significantly below the next, one LoRA" in comparison.verdict
    tested = test_of(comparison.tests, "mixture", "one LoRA")
    assert comparison.verdict.split("\n")[0].endswith(f"({p_words(tested['p_bootstrap_holm'])} after Holm).")
    points = f"{100 * (wer['one LoRA'] - wer['mixture']):.1f} points better"
    assert any(points in line and "mixture" in line and "against one LoRA" in line for line in comparison.verdict.split("\n"))


def test_a_tie_is_called_a_tie():
    words = compare([system("base", 0.2), system("mixture", 0.2, MIXTURE, seed=1)], n_resamples=1000).verdict
    assert "not significantly below" in words and "not significant (" in words


def test_a_group_that_gets_worse_is_named():
    good, bad = hypotheses(0.3), hypotheses(0.3, seed=0)
    typical = bad["etiology"] == "typical"
    bad.loc[typical, "hypothesis"] = ""
    bad.loc[~typical, "hypothesis"] = bad.loc[~typical, "reference"]
    runs = [scores("base", "r0", BASE, good), scores("mixture", "r1", MIXTURE, bad)]
    words = compare(runs, n_resamples=1000).verdict
    assert "typical by" in words and "Worse in" in words and "ALS by" not in words


def test_an_equal_system_differs_by_nothing_with_p_one():
    found = compare([system("base", 0.2), system("copy", 0.2)], n_resamples=500).tests.iloc[0]
    assert found["difference"] == 0 and found["p_bootstrap"] == 1 and found["p_mapsswe"] == 1


def test_tests_can_be_read_either_way_round(comparison):
    straight = test_of(comparison.tests, "mixture", "base")
    turned = test_of(comparison.tests, "base", "mixture")
    assert turned["difference"] == -straight["difference"] and turned["low"] == -straight["high"]


def test_figures_markdown_and_html_hold_what_was_found(comparison):
    assert {"wer_by_system", "wer_by_etiology", "wer_against_n_trainable"} <= set(comparison.figures)
    assert all(isinstance(figure, Figure) for figure in comparison.figures.values())
    text = comparison.markdown()
    assert comparison.verdict in text and "synthetic speech" in text and "| mixture |" in text
    rate = comparison.by_group.query("system == 'mixture' and group == 'ALS'").iloc[0]
    assert f"{100 * rate['wer']:.1f} % ({100 * rate['low']:.1f}–{100 * rate['high']:.1f})" in text
    page = comparison.html()
    assert page.count("data:image/png;base64,") == len(comparison.figures) and "synthetic speech" in page
    assert "http://" not in page and "https://" not in page  # nothing is loaded from elsewhere


def test_the_answer_does_not_depend_on_row_order():
    shuffled = [dataclasses.replace(one, hypotheses=one.hypotheses.sample(frac=1, random_state=4)) for one in three()]
    a, b = compare(three(), n_resamples=500), compare(shuffled, n_resamples=500)
    pd.testing.assert_frame_equal(a.tests, b.tests)
    pd.testing.assert_frame_equal(a.by_group, b.by_group)


def test_seeds_of_one_system_are_pooled_and_their_range_is_shown():
    runs = [system("base", 0.5), *(system("mixture", 0.1, MIXTURE, seed=seed) for seed in (1, 2, 3))]
    found = compare(runs, n_resamples=500)
    row = found.table.set_index("system").loc["mixture"]
    rates = [count_errors(run.hypotheses) for run in runs[1:]]
    rates = [table["word_errors"].sum() / table["n_words"].sum() for table in rates]
    assert row["n_runs"] == 3 and row["wer"] == pytest.approx(np.mean(rates))
    assert (row["seed_wer_min"], row["seed_wer_max"]) == pytest.approx((min(rates), max(rates)))
    assert row["low"] < row["wer"] < row["high"] and row["n_words"] == 720
    assert row["n_utterances"] == 72 and found.tests["n_segments"].iloc[0] > 72


def test_seeds_are_averaged_utterance_by_utterance_whatever_their_row_order():
    runs = [system("mixture", 0.1, MIXTURE, seed=seed) for seed in (1, 2)]
    turned = dataclasses.replace(runs[1], hypotheses=runs[1].hypotheses.iloc[::-1])
    pooled, errors = pool([runs[0], turned])[0].counted, [count_errors(run.hypotheses)["word_errors"] for run in runs]
    assert pooled["word_errors"].tolist() == ((errors[0] + errors[1]) / 2).tolist()


def test_runs_of_one_name_but_two_systems_are_refused():
    with pytest.raises(ValueError, match="different systems: single_lora, whisper_moe"):
        pool([system("x", 0.1, MIXTURE), system("x", 0.1, LORA, seed=1)])


def test_different_test_sets_are_refused_with_the_difference():
    """Issue 6: compare refuses runs scored on different test sets, naming what differs."""
    other = system("other", 0.1)
    fewer = scores("other", "r1", MIXTURE, other.hypotheses.iloc[:-2])
    with pytest.raises(ValueError, match=r"2 utterance\(s\) only in base: u070, u071"):
        check_comparable([system("base", 0.5), fewer])
    digest = scores("other", "r1", MIXTURE, other.hypotheses, {**METADATA, "test_set_digest": "d2"})
    with pytest.raises(ValueError, match="test_set_digest 'd2', base .* has 'd1'"):
        check_comparable([system("base", 0.5), digest])


def test_different_references_and_normalisers_are_refused_by_name():
    changed = hypotheses(0.1)
    changed.loc[3, "reference"] = "something else"
    with pytest.raises(ValueError, match=r"1 reference\(s\) differ: u003"):
        check_comparable([system("base", 0.5), scores("other", "r1", MIXTURE, changed)])
    with pytest.raises(ValueError, match="normaliser 'sap-2', base .* has 'basic-1'"):
        check_comparable([system("base", 0.5), system("other", 0.1, normaliser="sap-2")])


def test_one_system_and_an_unknown_base_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        compare([system("base", 0.5)])
    with pytest.raises(ValueError, match="all runs are named 'base'"):
        compare([system("base", 0.5), system("base", 0.5, seed=1)])
    with pytest.raises(ValueError, match="base='nothing': no such system; there are base, mixture"):
        compare([system("base", 0.5), system("mixture", 0.1, MIXTURE)], base="nothing")


def test_few_speakers_are_warned_about():
    runs = [scores(name, name, BASE, hypotheses(rate, n_speakers=2)) for name, rate in (("a", 0.5), ("b", 0.1))]
    assert "Only 2 speaker(s)" in compare(runs, n_resamples=200).verdict


def test_p_values_are_written_as_people_do():
    assert [p_words(p) for p in (0.0001, 0.04, np.nan)] == ["p < 0.001", "p = 0.040", "p not defined"]


def test_groups_are_named_so_that_a_sentence_can_say_them():
    good, bad = hypotheses(0.3), hypotheses(0.3)
    seen = bad["sentence_seen"].astype(bool)
    bad.loc[seen, "hypothesis"], bad.loc[~seen, "hypothesis"] = "", bad.loc[~seen, "reference"]
    runs = [scores("base", "r0", BASE, good), scores("mixture", "r1", MIXTURE, bad)]
    words = compare(runs, n_resamples=500, plots=False).verdict
    assert "sentences of train by" in words and "Most gained: unseen sentences" in words and "yes by" not in words


def test_costs_say_on_what_and_challenge_scores_stand_where_runs_have_them():
    challenge = {"rule": "sapc2", "primary": 0.25}
    runs = [system("base", 0.5, device="cpu", challenge=challenge),
            system("mixture", 0.1, MIXTURE, seed=1, training_device="NVIDIA H200", training_compute_seconds=7200, challenge=challenge)]  # fmt: skip
    found = compare(runs, n_resamples=200, plots=False)
    assert found.table["sapc2"].tolist() == [0.25, 0.25] and "25.0 %" in found.markdown() and "2 GPU h" in found.markdown()
    half = compare([runs[0], system("mixture", 0.1, MIXTURE, seed=1)], n_resamples=200, plots=False).table
    assert half["sapc2"].isna().tolist() == [False, True]


def test_a_rate_has_the_interval_that_its_evaluation_gave_whatever_the_seed_of_the_tests():
    pair = [system("base", 0.5), system("mixture", 0.3, MIXTURE, seed=1)]
    found = [compare(pair, n_resamples=500, seed=seed, plots=False) for seed in (0, 42)]
    for name, each in zip(("base", "mixture"), pair, strict=True):
        alone = rates_by(count_errors(each.hypotheses), None, 500).iloc[0][["wer", "low", "high"]].tolist()
        assert all(one.table.set_index("system").loc[name, ["wer", "low", "high"]].tolist() == alone for one in found)
    assert found[0].by_group["low"].tolist() == found[1].by_group["low"].tolist()
    assert found[0].tests["low"].tolist() != found[1].tests["low"].tolist()


def test_experts_stand_one_by_one():
    mixture = system("mixture", 0.1, MIXTURE, seed=1)
    mixture = dataclasses.replace(mixture, run_id="r" * 32, expert_wer={"expert_1": 0.4, "expert_0": 0.3})
    found = compare([system("base", 0.5), mixture], n_resamples=200)
    assert found.experts[["expert", "wer"]].to_numpy().tolist() == [[1, 0.4], [0, 0.3]]
    assert "| mixture | rrrrrrrr | 30.0 % | 40.0 % |" in found.markdown()
    assert "expert_wer" not in found.figures, "a picture of one row"
    other = dataclasses.replace(
        mixture, name="other", run_id="s" * 32, system="other", expert_wer={"expert_0": 0.2, "expert_1": 0.4}
    )
    assert "expert_wer" in compare([system("base", 0.5), mixture, other], n_resamples=200).figures


def test_curves_of_dev_and_train_are_overlaid_by_their_own_axis():
    history = pd.DataFrame(
        {
            "epoch": [0, 1, np.nan, np.nan],
            "dev/wer": [0.5, 0.4, np.nan, np.nan],
            "dev/loss": [np.nan, 1.0, np.nan, np.nan],
            "update": [np.nan, np.nan, 10, 20],
            "train/loss": [np.nan, np.nan, 2.0, 1.0],
        }
    )
    runs = [dataclasses.replace(one, history=history) for one in three()[1:]]
    figures = compare([three()[0], *runs], n_resamples=200).figures
    assert {"curves_dev_wer", "curves_train_loss"} <= set(figures) and "curves_dev_loss" not in figures, "one dot is no curve"
    assert figures["curves_train_loss"].axes[0].get_xlabel() == "updates of all stages"


def test_a_system_has_its_colour_whoever_stands_beside_it():
    roles = {
        "zero_shot": ("base", 0),
        "domain_whisper": ("candidate", 2),
        "steer_moe": ("candidate", 0),
        "wav2vec2_ctc": ("candidate", 1),
    }
    runs = [system(name, 0.2, (name, role), number=number) for name, (role, number) in roles.items()]
    wanted = {name: colour_place(*place) for name, place in roles.items()}
    assert colour_places(pool(runs)) == wanted and len(set(wanted.values())) == 4
    twice = colour_places(pool([*runs, system("steer_moe · other", 0.2, ("steer_moe", "candidate"), number=0)]))
    assert len(set(twice.values())) == 5  # another of a kind gets a colour of its own
