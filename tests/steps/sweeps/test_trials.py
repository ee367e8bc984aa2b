"""Which trials are best, and the table of all."""

import math

from steps.sweeps.trials import AS_GIVEN, TrainedChain, Trial, best_trials, trials_table


def trial(name: str, *rates: float, models: str = "", fault: str = "") -> Trial:
    chains = tuple(
        TrainedChain(seed, f"main-{name}-{seed}", "p", f"{models or name}-{seed}", rate) for seed, rate in enumerate(rates)
    )
    return Trial(name, {"k": int(name[-1])}, chains, fault)


def test_the_lowest_mean_over_the_seeds_is_best_and_the_earlier_of_equals() -> None:
    trials = [trial("t0", 0.2, 0.4), trial("t1", 0.1, 0.3), trial("t2", 0.25, 0.15), trial("t3", fault="diverged")]
    assert [each.name for each in best_trials(trials, 9)] == ["t1", "t2", "t0"] and best_trials(trials, 1)[0].rate == 0.2
    assert math.isnan(trials[3].rate) and best_trials(trials[3:], 1) == []


def test_one_model_is_one_finalist() -> None:
    trials = [trial("t0", 0.2, models="m"), trial("t1", 0.2, models="m"), trial("t2", 0.3)]
    assert [each.name for each in best_trials(trials, 2)] == ["t0", "t2"]


def test_the_table_has_a_row_for_every_trial() -> None:
    given = Trial(AS_GIVEN, {}, trial("t9", 0.5, 0.7).chains)
    table = trials_table([given, trial("t1", 0.1, 0.3), trial("t2", fault="diverged")], ["k"], "dev/wer")
    assert table["trial"].tolist() == [AS_GIVEN, "t1", "t2"] and table["k"].tolist() == [AS_GIVEN, "1", "2"]
    assert table["dev/wer"].round(6).tolist()[:2] == [0.6, 0.2] and math.isnan(table["dev/wer"][2])
    assert table["dev/wer, seed 1"].tolist()[:2] == [0.7, 0.3] and table["no result because"].tolist() == ["", "", "diverged"]
    assert table["runs"][1] == "main-t1-0, main-t1-1"
