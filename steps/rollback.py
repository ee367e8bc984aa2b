"""Entry point `rollback`: give the alias `champion` back to the champion before; the tags of both versions keep what happened.

Example:
    mlflow run . --env-manager local -e rollback -P reason=worse_in_the_clinic
"""

import dataclasses

from moe.options import Options, option
from steps.registry import versions
from steps.tracking import runs
from steps.tracking.locks import one_at_a_time


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Go back to the champion before."""

    registered_model: str = option("whisper-moe", "name in the registry")
    reason: str = option("none", "why, for the tags")


def run(options: StepOptions) -> str:
    """Move the alias and return the run id."""
    name = options.registered_model
    with runs.step_run("rollback", options, f"rollback · {name}") as step:
        with one_at_a_time(f"register {name}"):
            was, now = versions.roll_back(name, options.reason)
        versions.tag(name, now, {"restored_by": step.run_id})
        step.set_tags({"moe.registered": f"{name}/{now}"})
        step.log_metrics({"from_version": float(was), "to_version": float(now)})
        step.describe(f"The champion of {name} was version {was}, and is version {now} again. Reason: {options.reason}.")
        print(f"{name}: champion was version {was}, is version {now} again", flush=True)
    return step.run_id


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
