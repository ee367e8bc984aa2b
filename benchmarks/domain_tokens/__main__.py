"""What a domain token does to a Whisper: where it alone decides the text, and on the demo, where the voice tells the domain anyway.

    python -m benchmarks.domain_tokens --corpus rule --row blocks --seed 0       one training, scored under every token
    python -m benchmarks.domain_tokens --corpus demo --row "two domains" --seed 0
    python -m benchmarks.domain_tokens --table true                              the table of all that was measured, with its tests

A row is one training. It is scored on the test split with the right token, a wrong one, none and the classifier's (without tokens trained,
with none alone), and kept in benchmarks/results/domain_tokens; a row that is there is not measured again, so rows may run side by side in processes of their own.
`rule`: typical voices, whose reference is the sentence with its articles or without them, either by chance, and only the token says which.
`demo`: the corpus of `main`.
"""

import dataclasses

from benchmarks.domain_tokens.corpora import DEMO, RULE, corpus_of
from benchmarks.domain_tokens.measuring import measure
from benchmarks.domain_tokens.rows import ROWS
from benchmarks.domain_tokens.table import write_table
from moe.options import NONE, Options, option
from moe.training.threads import settle_threads
from steps.options.command_line import parse


@dataclasses.dataclass(frozen=True)
class CommandOptions(Options):
    """Measure what domain tokens do."""

    corpus: str = option(DEMO, "corpus", choices=(RULE, DEMO))
    row: str = option("all", "row to measure, or all of the corpus; none makes the corpus alone")
    seed: int = option(0, "seed of the training", low=0)
    beam_size: int = option(1, "beams", low=1)
    table: bool = option(False, "write the table of what has been measured, and measure nothing")

    def faults(self) -> list[str]:
        """A row that there is not."""
        known = ["all", NONE, *ROWS[self.corpus]]
        return [] if self.row in known else [f"row={self.row}: of {self.corpus} there are {', '.join(known)}"]


def command() -> None:
    """Command line."""
    options = parse(CommandOptions)
    print(settle_threads(), flush=True)
    if options.table:
        print(write_table())
        return
    corpus_of(options.corpus)
    names = list(ROWS[options.corpus]) if options.row == "all" else [] if options.row == NONE else [options.row]
    for name in names:
        measure(options.corpus, name, options.seed, options.beam_size)


if __name__ == "__main__":
    command()
