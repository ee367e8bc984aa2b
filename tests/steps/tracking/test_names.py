"""Any two texts have two names, the store takes each, and the text can be read back."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, path_not_unique

from steps.tracking.names import MAX_FILE_NAME, MAX_NAME, MetricNames, file_name, store_name, text_of

# few letters, so that two texts that look alike are drawn often
LIKELY = st.text(st.sampled_from("ab:_/.( )[é2e\u0301\ud800\n"), max_size=8) | st.text(st.characters(), max_size=40)
LONG = st.builds(lambda text, n: text * n, st.text(st.sampled_from("a(/é漢.:_"), min_size=1, max_size=4), st.integers(1, 200))


@given(LIKELY)
def test_a_text_can_be_read_back_from_either_name(text: str) -> None:
    assert text_of(store_name(text)) == text
    assert text_of(file_name(text)) == text


@given(LIKELY | LONG)
def test_the_store_takes_every_name_and_a_folder_every_file_name(text: str) -> None:
    _validate_metric_name(store_name(text), "metric")
    name = file_name(text)
    assert len(store_name(text)) <= MAX_NAME and len(name.encode()) <= MAX_FILE_NAME
    assert "/" not in name and not path_not_unique(name) and Path(name).name == name


@given(LIKELY | LONG, LIKELY | LONG)
def test_two_texts_have_two_names_whatever_their_case_of_brackets(first: str, second: str) -> None:
    assert (store_name(first) == store_name(second)) == (first == second)
    assert (file_name(first) == file_name(second)) == (first == second)


@given(LIKELY)
def test_no_text_is_named_as_one_that_was_cut(end: str) -> None:
    """The name of a long text is no name of a short one that spells it out."""
    long = "x" * 300 + end
    assert store_name(store_name(long)) != store_name(long)
    with pytest.raises(ValueError, match="beginning of a longer text"):
        text_of(store_name(long))


@pytest.mark.parametrize(
    "name", ["test/wer/etiology/Down syndrome", "expert_0/load", "test/wer/ALS-2.1", "test/wer/뇌성마비", "dev/wer"]
)
def test_ordinary_names_stay(name: str) -> None:
    assert store_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("test/wer/ALS (bulbar)", "test/wer/ALS :28bulbar:29"),
        ("test/wer/ALS [bulbar]", "test/wer/ALS :5bbulbar:5d"),
        ("a:b", "a:3ab"), ("a//b", "a/:/b"), ("..", ":2e."), ("", ":"), (" a ", ":20a:20"),
    ],
)  # fmt: skip
def test_what_the_store_refuses_is_written_as_its_bytes(text: str, name: str) -> None:
    assert store_name(text) == name


@given(st.lists(st.text(st.sampled_from("aAéÉeß/ :4s1"), max_size=4) | LIKELY, max_size=12))
def test_no_two_metrics_of_a_run_differ_by_case_or_accent_alone(texts: list[str]) -> None:
    """MySQL's utf8mb4_0900_ai_ci takes such names for one, and refuses the second as a duplicate key."""
    names = MetricNames()
    found = {text: names.of(text) for text in texts}
    assert all(text_of(name) == text == text_of(names.of(text)) for text, name in found.items())
    blind = {
        "".join(each for each in unicodedata.normalize("NFKD", name).casefold() if not unicodedata.combining(each))
        for name in found.values()
    }
    assert len(blind) == len(found)
    again = MetricNames(found.values())  # the run is continued
    assert {text: again.of(text) for text in reversed(found)} == found


def test_the_first_of_two_spellings_keeps_its_plain_name() -> None:
    names = MetricNames()
    assert [names.of(f"test/wer/{text}") for text in ("ALS", "als", "Als", "ALS")] == [
        "test/wer/ALS", "test/wer/als", "test/wer/:41ls", "test/wer/ALS",
    ]  # fmt: skip
