"""A word of a transcript with its times."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Word:
    """A word with its start and end in seconds from the start of what was decoded, and the geometric mean of its tokens' probabilities."""

    word: str
    start_s: float
    end_s: float
    confidence: float
