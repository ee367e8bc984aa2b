"""Signs that a hypothesis is not a transcript: loops, text from nowhere, speech at an impossible rate; and repetitions lost.

Thresholds follow what Whisper itself uses to decide on a retry where it has one (compression ratio 2.4, mean log-probability −1).
A flag is a reason to look, not an error count: no rate in this package leaves a flagged utterance out.
"""

import zlib
from collections.abc import Sequence

import jiwer
import numpy as np
import pandas as pd

MOST_COMPRESSION = 2.4
MOST_REPEATS = 4  # times the same n-gram in a row
LONGEST_NGRAM = 5
MOST_WORDS_PER_S = 7.0  # and tokens: at most so many by second of audio
MOST_TOKENS_PER_S = 25.0
LEAST_LOGPROB = -1.0
LEAST_HALLUCINATED = 3  # words none of which was said
FLAGS = ("is_empty", "is_loop", "is_hallucination", "is_too_fast", "is_unsure", "is_smoothed")


def flag_hypotheses(table: pd.DataFrame) -> pd.DataFrame:
    """A counted table with measures and flags.

    Returns:
        the table with compression_ratio, repeats, words_per_s, tokens_per_s, deleted_repeats and the columns of FLAGS: is_empty
        (nothing recognised where something was said), is_loop (the text repeats itself, more than the reference does),
        is_hallucination (three words or more, none of them said), is_too_fast (more words, or tokens, than can be spoken),
        is_unsure (mean log-probability below −1), is_smoothed (a repeated word of the reference deleted). Measures of what is
        not recorded (`duration_s`, `n_tokens`, `mean_logprob`) are NaN and flag nothing.
    """
    n_heard = table["word_hits"] + table["word_substitutions"] + table["word_insertions"]
    repeats, said = (table[column].map(longest_repeat) for column in ("hypothesis", "reference"))
    ratio = table["hypothesis"].map(compression_ratio)
    seconds, n_tokens, logprob = (_recorded(table, column) for column in ("duration_s", "n_tokens", "mean_logprob"))
    seconds = seconds.where(seconds > 0)
    lost = deleted_repeats(table["reference"].tolist(), table["hypothesis"].tolist())
    return table.assign(
        compression_ratio=ratio,
        repeats=repeats,
        words_per_s=n_heard / seconds,
        tokens_per_s=n_tokens / seconds,
        deleted_repeats=lost,
        is_empty=(n_heard == 0) & (table["n_words"] > 0),
        is_loop=((repeats >= MOST_REPEATS) & (repeats > said)) | (ratio > MOST_COMPRESSION),
        is_hallucination=(table["word_hits"] == 0) & (n_heard >= LEAST_HALLUCINATED),
        is_too_fast=(n_heard / seconds > MOST_WORDS_PER_S) | (n_tokens / seconds > MOST_TOKENS_PER_S),
        is_unsure=logprob < LEAST_LOGPROB,
        is_smoothed=lost > 0,
    )


def flag_counts(flagged: pd.DataFrame) -> pd.DataFrame:
    """How often each flag is raised: columns flag, n_utterances, share, word_errors (made by those utterances)."""
    rows = [
        {"flag": flag_name(flag), "n_utterances": int(flagged[flag].sum()),
         "share": float(flagged[flag].mean()), "word_errors": float(flagged.loc[flagged[flag], "word_errors"].sum())}
        for flag in FLAGS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def flag_name(flag: str) -> str:
    """A column of FLAGS as a reader knows it."""
    return {"is_smoothed": "lost repetition"}.get(flag, flag.removeprefix("is_").replace("_", " "))


def compression_ratio(text: str) -> float:
    """Bytes of the text by bytes of its zlib compression: about 1 for a sentence, above 2.4 for a loop; 0 for no text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def longest_repeat(text: str) -> int:
    """How many times in a row the most repeated n-gram of words occurs (n ≤ 5); 1 where nothing repeats, 0 for no words."""
    words = text.split()
    return max((_repeats_of(words, size) for size in range(1, min(LONGEST_NGRAM, len(words)) + 1)), default=0)


def deleted_repeats(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Words deleted beside an equal word of the reference: repetitions the recogniser smoothed away, shape (n_utterances,)."""
    output = jiwer.process_words(list(references), list(hypotheses))
    return np.array(
        [_n_deleted(words, chunks) for words, chunks in zip(output.references, output.alignments, strict=True)], np.int64
    )


def _recorded(table: pd.DataFrame, column: str) -> pd.Series:
    return table[column].astype(float) if column in table else pd.Series(np.nan, table.index)


def _n_deleted(words: list[str], chunks: list[jiwer.AlignmentChunk]) -> int:
    deleted = [at for chunk in chunks if chunk.type == "delete" for at in range(chunk.ref_start_idx, chunk.ref_end_idx)]
    return sum(words[at] in (words[at - 1] if at else None, words[at + 1] if at + 1 < len(words) else None) for at in deleted)


def _repeats_of(words: list[str], size: int) -> int:
    """Longest chain of equal neighbouring n-grams of that size."""
    best = run = 1
    same = 0  # words in a row equal to the word `size` places before
    for at in range(size, len(words)):
        same = same + 1 if words[at] == words[at - size] else 0
        run = 1 + same // size
        best = max(best, run)
    return best
