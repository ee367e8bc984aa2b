"""What people get from an expert and weights of their own: 20 who speak as nobody in training does, and the demo's 30 test speakers.

    python -m benchmarks.personal --demo [--sizes 20,40]                           with the newest recognisers of the store; their table
    python -m benchmarks.personal --model FOLDER [--name NAME] [--sizes 20,40]     learn, test, write a result for each size
    python -m benchmarks.personal --table                                          the table of all results

FOLDER holds a recogniser (the artifact `model` of a run). Each person enrols with so many utterances and is tested on 20 others of other
sentences. A result that is there is not made again; the corpus of 50 people with 60 utterances each is made once.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import transformers

from benchmarks.personal.demo import demo
from benchmarks.personal.measuring import measure
from benchmarks.personal.people import FOLDER
from benchmarks.personal.table import table
from moe.experts.people.options import PersonOptions
from moe.options import names_of

SIZES = (5, 10, 20, 40)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--model", type=Path, help="folder of a recogniser")
    asked.add_argument("--demo", action="store_true")
    asked.add_argument("--table", action="store_true")
    parser.add_argument("--name", help="of the model in the table")
    parser.add_argument("--sizes", type=numbers, default=SIZES, help="utterances of each person")
    parser.add_argument("--people_seed", type=int, default=42, help="options were chosen on the people of seed 7")
    for field in dataclasses.fields(PersonOptions):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    parser.add_argument("--out", type=Path, default=FOLDER)
    chosen = parser.parse_args(arguments)
    if chosen.name and not chosen.model:
        parser.error("--name names the recogniser of --model")
    transformers.logging.set_verbosity_error()
    if chosen.table:
        print(table(chosen.out, chosen.people_seed))
        return 0
    if chosen.demo:
        passed_on = [f"--{name}={getattr(chosen, name)}" for name in ("people_seed", "out", *names_of(PersonOptions))]
        print(table(chosen.out, chosen.people_seed, demo(chosen.sizes, passed_on)))
        return 0
    options = PersonOptions(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(PersonOptions)})
    for path in measure(chosen.model, chosen.name, chosen.sizes, options, chosen.people_seed, chosen.out):
        print(path.read_text(encoding="utf-8"))
    return 0


def numbers(text: str) -> list[int]:
    """Numbers of utterances that there are, separated by commas."""
    found = [int(part) for part in text.split(",")]
    if unknown := set(found) - set(SIZES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} are not of {SIZES}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
