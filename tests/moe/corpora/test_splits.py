"""No speaker is in two splits, etiologies are spread as evenly as whole speakers allow, and what is shared is reported."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.corpora.leaks import LeakError, leak_report, refuse_leaks, seen_sentences, seen_words
from moe.corpora.splits import SplitPlan, assign_splits


def corpus(
    speakers: dict[str, tuple[str, int]], own: dict[str, str] | None = None, severity: dict[str, float] | None = None
) -> pd.DataFrame:
    """speaker → (etiology, utterances), with the own split and severity of every speaker."""
    rows = [
        (
            f"{speaker}-{k:03d}",
            f"sentence {speaker} {k}",
            speaker,
            etiology,
            (severity or {}).get(speaker, np.nan),
            (own or {}).get(speaker, ""),
        )
        for speaker, (etiology, n) in speakers.items()
        for k in range(n)
    ]
    return pd.DataFrame(rows, columns=["utterance_id", "reference", "speaker", "etiology", "severity", "split"])


TWENTY = corpus({f"s{k:02d}": ("als" if k < 10 else "stroke", 10) for k in range(20)})


def split(table: pd.DataFrame, **plan) -> pd.DataFrame:
    return table.assign(split=assign_splits(table, SplitPlan(**plan)))


def speakers_of(table: pd.DataFrame, name: str) -> set[str]:
    return set(table.loc[table["split"] == name, "speaker"])


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.sampled_from(["als", "stroke", "cp"]), st.integers(1, 30)), min_size=3, max_size=15),
    seed=st.integers(0, 9),
    shares=st.tuples(st.floats(0.02, 0.4), st.floats(0.02, 0.4)),
)
def test_by_speaker_is_disjoint_whole_and_never_empty(sizes, seed, shares):
    """Pitfall 4: splits were random by utterance."""
    table = split(
        corpus({f"s{k}": size for k, size in enumerate(sizes)}),
        mode="by_speaker",
        seed=seed,
        dev_share=shares[0],
        test_share=shares[1],
    )
    assert set(table["split"]) == {"train", "dev", "test"}
    assert table.groupby("speaker")["split"].nunique().eq(1).all()
    for _, rows in table.groupby("etiology"):  # train keeps one of every etiology that can spare one
        assert rows["speaker"].nunique() < 2 or "train" in set(rows["split"]) or (table["split"] == "train").any()


def test_etiologies_are_spread_as_whole_speakers_allow():
    table = split(TWENTY, mode="by_speaker", dev_share=0.2, test_share=0.3)
    n = table.groupby(["etiology", "split"])["speaker"].nunique().unstack()
    assert n.to_dict("index") == {"als": {"dev": 2, "test": 3, "train": 5}, "stroke": {"dev": 2, "test": 3, "train": 5}}


def test_speakers_of_unequal_size_come_near_the_share():
    sizes = {f"s{k}": ("als", n) for k, n in enumerate([100, 90, 5, 5, 5, 40, 10, 20, 15, 10])}
    for seed in range(5):
        share = (split(corpus(sizes), mode="by_speaker", seed=seed)["split"] == "test").mean()
        assert abs(share - 0.1) < 0.02


def test_severity_is_spread_too():
    severity = {f"s{k:02d}": float(k % 10) for k in range(20)}
    for seed in range(5):
        table = corpus({name: ("als", 10) for name in severity}, severity=severity)
        tested = split(table, mode="by_speaker", test_share=0.3, seed=seed)
        levels = tested[tested["split"] == "test"]["severity"]
        assert levels.lt(5).mean() == pytest.approx(0.5)


def test_the_seed_decides_and_row_order_does_not():
    """Pitfall 13: order by id before sampling."""
    one = split(TWENTY, mode="by_speaker", seed=1)
    turned = split(TWENTY.sample(frac=1, random_state=0), mode="by_speaker", seed=1).sort_index()
    assert one.equals(turned)
    assert any(not one.equals(split(TWENTY, mode="by_speaker", seed=seed)) for seed in range(2, 5))


def test_shares_of_zero_hold_nothing_out():
    assert set(split(TWENTY, mode="by_speaker", dev_share=0.0, test_share=0.0)["split"]) == {"train"}
    assert set(split(TWENTY, mode="by_speaker", dev_share=0.0)["split"]) == {"train", "test"}


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_speakers_are_named(n):
    table = corpus({f"s{k}": ("als", 5) for k in range(n)})
    with pytest.raises(ValueError, match=rf"{n} speakers \(s0.*needs at least 3"):
        split(table, mode="by_speaker")


def test_two_speakers_are_enough_without_dev():
    table = split(corpus({"a": ("als", 5), "b": ("als", 5)}), mode="by_speaker", dev_share=0.0)
    assert {len(speakers_of(table, name)) for name in ("train", "test")} == {1}


OWN = {"a": "train", "b": "train", "c": "train", "d": "dev", "e": "test"}
FIVE = {name: ("als", 4) for name in OWN}


def test_the_own_split_is_kept_and_auto_takes_it():
    for mode in ("own", "auto"):
        table = split(corpus(FIVE, OWN | {"d": "validation"}), mode=mode)
        assert (
            speakers_of(table, "train") == {"a", "b", "c"}
            and speakers_of(table, "dev") == {"d"}
            and speakers_of(table, "test") == {"e"}
        )


def test_a_missing_test_part_is_held_out_of_train_by_speaker():
    """Pitfall 4: Dev was merged into training and was then the benchmark."""
    table = split(corpus(FIVE, OWN | {"e": "train"}), mode="own")
    assert speakers_of(table, "dev") == {"d"}
    assert len(speakers_of(table, "test")) == 1 and speakers_of(table, "test") < {"a", "b", "c", "e"}


def test_an_own_split_that_is_incomplete_or_not_understood_is_refused():
    with pytest.raises(ValueError, match="4 of 20 utterances have no split of their own"):
        split(corpus(FIVE, OWN | {"e": ""}), mode="own")
    with pytest.raises(ValueError, match="split 'holdout' means none of"):
        split(corpus(FIVE, OWN | {"e": "holdout"}), mode="own")
    with pytest.raises(ValueError, match="no utterance is in train"):
        split(corpus(FIVE, dict.fromkeys(OWN, "test")), mode="own", dev_share=0.0)


def test_a_planted_speaker_leak_is_named_and_refused():
    table = corpus(FIVE, OWN)
    table.loc[table["utterance_id"] == "a-000", "split"] = "test"
    with pytest.raises(LeakError, match=r"speaker leak: 1 speakers are in more than one split: a \(train, test\)") as caught:
        assign_splits(table, SplitPlan(mode="own"))
    assert caught.value.report.speakers.values.tolist() == [["a", "train, test", 4]]
    with pytest.raises(LeakError):
        refuse_leaks(table)


def test_a_planted_sentence_overlap_is_reported_with_counts_and_not_refused():
    table = corpus(FIVE, OWN)
    table.loc[table["utterance_id"].isin(["a-000", "a-001", "d-000", "e-000", "e-001"]), "reference"] = "hello"
    report = refuse_leaks(table)
    assert report.sentences.values.tolist() == [["hello", 2, 1, 2]]
    assert report.counts.set_index("split")["n_sentence_in_train"].to_dict() == {"train": 12, "dev": 1, "test": 2}
    assert table[seen_sentences(table)]["utterance_id"].isin(["d-000", "e-000", "e-001"]).sum() == 3


def test_unknown_speakers_are_counted_and_not_called_a_leak():
    table = corpus(FIVE, OWN).assign(speaker="unknown")
    report = leak_report(table)
    assert not len(report.speakers) and report.counts["n_unknown_speaker"].tolist() == [12, 4, 4]


def test_folds_are_disjoint_stratified_and_cover_every_speaker():
    tested = [speakers_of(split(TWENTY, mode="k_fold", fold=fold, n_folds=5), "test") for fold in range(5)]
    assert sorted(name for part in tested for name in part) == sorted(TWENTY["speaker"].unique())
    assert all(len(part) == 4 and sum(name < "s10" for name in part) == 2 for part in tested)


def test_folds_and_speakers_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="fold=5: must be from 0 to n_folds − 1 = 4"):
        split(TWENTY, mode="k_fold", fold=5, n_folds=5)
    with pytest.raises(ValueError, match="n_folds=21: the corpus has only 20 speakers"):
        split(TWENTY, mode="k_fold", n_folds=21)
    with pytest.raises(ValueError, match="test_speaker='nobody': the corpus's speakers are s00"):
        split(TWENTY, mode="leave_one_speaker_out", test_speaker="nobody")


def test_one_speaker_is_left_out():
    table = split(TWENTY, mode="leave_one_speaker_out", test_speaker="s07")
    assert speakers_of(table, "test") == {"s07"} and speakers_of(table, "dev") and "s07" not in speakers_of(table, "dev")


def test_words_are_seen_where_train_has_every_one_of_them():
    rows = [("train", "a b"), ("train", "c"), ("dev", "d"), ("test", "c a"), ("test", "a d"), ("test", "")]
    table = pd.DataFrame(rows, columns=["split", "reference"])
    assert seen_words(table).tolist() == [True, True, False, True, False, True]
