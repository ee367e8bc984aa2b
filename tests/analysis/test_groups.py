"""Columns to break results down by: their bounds, their order, and that no row is lost."""

import numpy as np
import pandas as pd
import pytest

from analysis.error_rates import count_errors, rates_by
from analysis.groups import DURATION_NAMES, groupings, severity_groups, with_groups
from analysis.hypotheses import groups_of


def test_durations_fall_into_buckets_whose_lower_bound_is_inside():
    found = with_groups(pd.DataFrame({"duration_s": [0.0, 1.99, 2.0, 9.9, 10.0, 30.0, 99.0]}))["duration_group"]
    assert found.astype(str).tolist() == [
        "under 2 s", "under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "over 30 s", "over 30 s"
    ]  # fmt: skip


def test_buckets_are_reported_in_the_order_of_duration_and_not_of_the_alphabet():
    durations = [25.0, 12.0, 1.0, 3.0]
    table = pd.DataFrame({"reference": "a b", "hypothesis": "a", "speaker": "s", "duration_s": durations})
    counted = count_errors(table.assign(utterance_id=list("abcd")))
    names = rates_by(with_groups(counted), "duration_group")["group"].tolist()
    assert names == [name for name in DURATION_NAMES if name in names] and len(names) == 4


def test_numbers_are_ordered_by_size_and_unknown_comes_last():
    found = groups_of(pd.DataFrame({"severity": [10.0, 2.0, np.nan, 1.5]}), "severity")
    assert found.cat.categories.tolist() == ["1.5", "2", "10", "unknown"] and found.tolist() == ["10", "2", "unknown", "1.5"]


def test_a_few_ratings_stay_and_a_continuous_severity_is_cut_into_thirds():
    assert severity_groups(pd.Series([1.0, 2.0, np.nan])).tolist()[:2] == [1.0, 2.0]
    found = severity_groups(pd.Series([*np.linspace(0.1, 0.9, 9), np.nan]))
    assert found.value_counts().tolist() == [3, 3, 3] and found.iloc[0] == "low severity" and pd.isna(found.iloc[9])


@pytest.mark.parametrize("column", ["sex", "gender"])
def test_sex_is_read_from_the_spellings_corpora_use(column):
    found = with_groups(pd.DataFrame({column: ["F", "male", " Woman ", None, "prefer not to say"]}))["sex"]
    assert found.fillna("-").tolist() == ["female", "male", "female", "-", "-"]


def test_only_columns_that_tell_groups_apart_are_listed():
    table = with_groups(
        pd.DataFrame({"etiology": ["a", "b"], "language": "en", "duration_s": [1.0, 9.0], "sentence_seen": [True, False]})
    )
    assert groupings(table) == ["etiology", "sentence_seen", "duration_group"]


def test_an_unknown_column_is_refused_by_name():
    with pytest.raises(ValueError, match="'dialect'.*speaker"):
        groups_of(pd.DataFrame({"speaker": ["a"]}), "dialect")
