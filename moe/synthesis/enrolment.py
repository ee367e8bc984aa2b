"""What test speakers say to enrol with: a corpus of its own in the folder `enrolment`, for `personalise`.

Whole sentences go to one side, in the order of their digests, so that nobody is tested on a sentence that they enrolled with.
"""

import hashlib
from pathlib import Path

import pandas as pd

ENROLMENT = "enrolment"


def part(rows: pd.DataFrame, n_tested: int, folder: Path) -> pd.DataFrame:
    """Move what each test speaker says beyond `n_tested` utterances to the enrolment corpus; the rows that stay."""
    tests = rows[rows["split"] == "test"]
    moved = tests.drop(index=tests.index[_is_tested(tests, n_tested)])
    (folder / ENROLMENT / "audio").mkdir(parents=True)
    for path in moved["path"]:
        (folder / path).rename(folder / ENROLMENT / path)
    kept = moved.drop(columns=["split", "n_redrawn", "starts", "phonemes"], errors="ignore")
    kept.assign(synthetic=True).to_csv(folder / ENROLMENT / "manifest.csv", index=False)
    return rows.drop(index=moved.index).reset_index(drop=True)


def _is_tested(tests: pd.DataFrame, n_tested: int) -> pd.Series:
    """Whether each utterance is among the first `n_tested` of its speaker, a sentence that passes this number whole."""
    digests = tests["transcript"].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    ordered = tests.assign(digest=digests).sort_values(["speaker", "digest", "utterance_id"])
    before = ordered.groupby("speaker").cumcount()
    begun = before.groupby([ordered["speaker"], ordered["digest"]]).transform("min")  # where its sentence starts
    return (begun < n_tested).reindex(tests.index)
