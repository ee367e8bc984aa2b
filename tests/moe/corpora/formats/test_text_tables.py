"""Whatever a table of text holds, each of its rows is used, quarantined or named with its line, and no transcript holds another row."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.corpora.formats.table import CorpusOptions
from moe.corpora.listing import Listing, list_corpus

HEADER = "path,transcript,speaker,etiology"


def listed(folder: Path, table: str | bytes, name: str = "manifest.csv", **options) -> Listing:
    (folder / name).write_bytes(table.encode() if isinstance(table, str) else table)
    return list_corpus("folder", str(folder), CorpusOptions(**options))


def transcripts(listing: Listing) -> dict[str, str]:
    usable = listing.utterances[listing.utterances["reason"].isna()]
    return dict(zip(usable["audio"], usable["transcript"], strict=True))


def row(number: int, transcript: str) -> str:
    return f"wav/{number}.wav,{transcript},s{number % 3},als"


TEXTS = st.one_of(
    st.text(st.sampled_from("ab \"\t;|'’\\"), max_size=12),
    st.text(st.sampled_from('a",'), max_size=8),
    st.sampled_from(['"', '""', '"oh', '"oh" no', 'oh "', 'say ""hi""', "wav/7.wav", "null", "NA"]),
)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=12), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_listed_is_used_and_named_whatever_the_table(texts: list[str], end: str, last: bool, tmp_path_factory) -> None:
    """No row is lost and none holds another: each line of a table without quoting has its own utterance or its own fault."""
    lines = [row(number, text) for number, text in enumerate(texts)]
    table = end.join([HEADER, *lines]) + end * last + (end + row(99, "fine") if not last else row(99, "fine"))
    listing = listed(tmp_path_factory.mktemp("table"), table)
    assert len(listing.utterances) + int(listing.faults["n_lost"].sum()) == len(texts) + 1
    assert not listing.utterances["transcript"].dropna().str.contains(r"\n|\.wav,", regex=True).any()
    assert listing.faults["file"].str.fullmatch(r"manifest\.csv:\d+").all()


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=15), min_size=1, max_size=8
    )
)
def test_a_table_that_is_written_well_comes_back_as_it_is(texts: list[str], tmp_path_factory) -> None:
    """The oracle is Python's own writer, fields over several lines included."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(HEADER.split(","))
    writer.writerows([f"wav/{number}.wav", text, "s", "als"] for number, text in enumerate(texts))
    listing = listed(tmp_path_factory.mktemp("table"), buffer.getvalue())
    assert transcripts(listing) == {f"wav/{number}.wav": text for number, text in enumerate(texts)} and not len(listing.faults)


def test_a_stray_quotation_mark_takes_no_other_row_with_it(tmp_path: Path) -> None:
    lines = [HEADER, row(1, "one"), row(2, '"oh two'), row(3, "three"), row(4, '"oh" four'), row(5, "five")]
    listing = listed(tmp_path, "\n".join(lines))
    assert transcripts(listing) == {
        f"wav/{n}.wav": t for n, t in enumerate(["one", '"oh two', "three", '"oh" four', "five"], start=1)
    }
    assert any("quotation mark" in note and "2 times, first manifest.csv:3" in note for note in listing.notes)


@pytest.mark.parametrize("closing", ['stop"', '"stop"', 'stop",s1,als\nwav/8.wav,"go'])
def test_a_mark_that_a_later_row_seems_to_close_takes_none_either(closing: str, tmp_path: Path) -> None:
    lines = [HEADER, row(1, '"oh one'), *(row(n, "word") for n in range(2, 6)), row(6, closing), row(7, "last")]
    listing = listed(tmp_path, "\n".join(lines))
    used = transcripts(listing)
    assert used["wav/7.wav"] == "last" and {f"wav/{n}.wav" for n in range(2, 6)} <= set(used)
    assert len(listing.utterances) + len(listing.faults) == (8 if "\n" in closing else 7)


def test_a_field_over_several_lines_is_one_transcript_and_said(tmp_path: Path) -> None:
    listing = listed(tmp_path, f'{HEADER}\nwav/1.wav,"one\nand more, too",s1,als\n{row(2, "two")}\n')
    assert transcripts(listing) == {"wav/1.wav": "one\nand more, too", "wav/2.wav": "two"}
    assert any("runs over line ends (manifest.csv:2)" in note for note in listing.notes)


def test_the_audio_may_come_last(tmp_path: Path) -> None:
    listing = listed(tmp_path, 'transcript,path\n"one\nand, more",wav/1.wav\n"oh two,wav/2.wav\nthree,wav/3.wav\n')
    assert transcripts(listing) == {"wav/1.wav": "one\nand, more", "wav/2.wav": '"oh two', "wav/3.wav": "three"}


def test_rows_with_other_columns_are_named_by_line(tmp_path: Path) -> None:
    listing = listed(tmp_path, "\n".join([HEADER, row(1, "well, one"), "wav/2.wav,two,s1", row(3, "three"), ",,,"]))
    assert transcripts(listing) == {"wav/3.wav": "three"}
    assert listing.faults["file"].tolist() == ["manifest.csv:2"]
    short = listing.utterances[listing.utterances["reason"].notna()]
    assert short[["audio", "reason", "detail"]].values.tolist() == [
        ["wav/2.wav", "bad_row", "manifest.csv:3: 3 fields where the header names 4"]
    ]


def test_a_second_table_in_one_goes_by_its_own_header(tmp_path: Path) -> None:
    second = ["etiology,text,file_name", "cp,five,wav/5.wav"]
    listing = listed(tmp_path, "\n".join([HEADER, row(1, "one"), HEADER, row(2, "two"), "", *second]))
    assert transcripts(listing) == {"wav/1.wav": "one", "wav/2.wav": "two", "wav/5.wav": "five"} and not len(listing.faults)
    assert any("the header comes again" in note and "2 times, first manifest.csv:3" in note for note in listing.notes)


@pytest.mark.parametrize("delimiter", list("\t;|,"))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_delimiters_and_encodings_are_found_out_and_said(delimiter: str, encoding: str, tmp_path: Path) -> None:
    lines = [HEADER.replace(",", delimiter), delimiter.join(["wav/1.wav", "naïve café", "Zoë", "als"])]
    listing = listed(tmp_path, "\n".join(lines).encode(encoding))
    assert listing.utterances[["transcript", "speaker", "etiology"]].values.tolist() == [["naïve café", "Zoë", "als"]]
    assert any("divided by" in note for note in listing.notes) == (delimiter != ",")
    assert any("the table is in utf" in note for note in listing.notes) == encoding.startswith(("utf-16", "utf-32"))


def test_bytes_of_another_encoding_are_named_with_what_to_do(tmp_path: Path) -> None:
    listing = listed(tmp_path, f"{HEADER}\n{row(1, 'naïve')}\n{row(2, 'plain')}\n".encode("cp1252"))
    assert transcripts(listing) == {"wav/2.wav": "plain"} and "iconv -f WINDOWS-1252" in listing.faults["detail"][0]


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from('a"\0'), max_size=4), max_size=8), padding=st.integers(0, 3))
def test_nul_characters_cost_their_own_lines_and_make_no_table_utf_16(texts: list[str], padding: int, tmp_path_factory) -> None:
    """A torn write leaves NULs, at the end as a rule: nothing else in the table is lost or read otherwise."""
    texts = ["whole", *texts]
    lines = [HEADER, *(row(number, text) for number, text in enumerate(texts))]
    listing = listed(tmp_path_factory.mktemp("table"), "\n".join(lines) + "\n" + "\0" * padding)
    torn = [f"manifest.csv:{number + 2}" for number, text in enumerate([*texts, "\0" * padding]) if "\0" in text]
    assert listing.faults.loc[listing.faults["detail"].str.contains("NUL"), "file"].tolist() == torn
    assert len(listing.utterances) + len(listing.faults) == len(texts) + bool(padding)


@pytest.mark.parametrize("name", ["manifest.tsv", "Metadata.CSV", "metadata.tsv"])
def test_other_names_of_tables(name: str, tmp_path: Path) -> None:
    assert transcripts(listed(tmp_path, f"{HEADER}\n{row(1, 'one')}", name)) == {"wav/1.wav": "one"}


def test_lines_of_json(tmp_path: Path) -> None:
    lines = '{"file_name": "a.wav", "text": "one", "speaker": 7}\n{"file_name": \nnull\n{"text": "two", "file_name": "b.wav"}\n'
    listing = listed(tmp_path, lines, "metadata.jsonl")
    assert transcripts(listing) == {"a.wav": "one", "b.wav": "two"} and set(listing.utterances["speaker"]) == {"7", "unknown"}
    assert listing.faults["file"].tolist() == ["metadata.jsonl:2", "metadata.jsonl:3"]


def test_paths_of_windows_are_read_or_named(tmp_path: Path) -> None:
    listing = listed(tmp_path, "path,transcript\nwav\\1.wav,one\nC:\\data\\2.wav,two\n")
    assert set(listing.utterances["audio"]) == {"wav/1.wav", "C:/data/2.wav"}
    from moe.corpora.quarantine import inspect_audio

    inspected = inspect_audio(str(tmp_path), "C:/data/2.wav", None, 0.1, 30.0)
    assert inspected.reason == "outside_root" and "relative to the corpus root" in inspected.detail


def test_absolute_paths_into_the_corpus_are_relative(tmp_path: Path) -> None:
    listing = listed(tmp_path, f"path,transcript\n{tmp_path}/wav/1.wav,one\n/etc/hostname,two\n")
    assert set(listing.utterances["audio"]) == {"wav/1.wav", "/etc/hostname"}
