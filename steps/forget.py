"""Entry point `forget`: a person who asks is gone without trace: runs, versions, files, and within a minute the memory of running servers.

A second call says that there is nothing. Example:
    mlflow run . --env-manager local -e forget -P person=anna
"""

import dataclasses

from moe.experts.people.person import name_faults
from moe.options import Options, option
from steps.registry import people
from steps.tracking import runs
from steps.tracking.store import connect


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Forget a person."""

    person: str = option(help="name of the person")

    def faults(self) -> list[str]:
        """What is no name."""
        return name_faults([self.person])


def run(options: StepOptions) -> str:
    """Forget the person; there is no run, since it would keep the name."""
    connect()
    n_deleted = people.forget(options.person)
    said = f"{n_deleted} runs and registered models are deleted" if n_deleted else "there is nothing of that person"
    print(f"forget: {said}", flush=True)
    return ""


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
