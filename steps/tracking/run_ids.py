"""Run ids as people give them: whole, or their first characters, which is what the screen shows."""

import dataclasses
import re

from mlflow.entities import ViewType

from moe.options import OptionsType
from steps.tracking.experiments import every_experiment
from steps.tracking.names import RUN_IDS
from steps.tracking.store import connect

PREFIX = re.compile(r"[0-9a-f]{4,31}")


def whole_id(text: str) -> str:
    """The id of the only run that begins so; what is no beginning of an id, or of none, stays as it is.

    Raises:
        ValueError: several runs begin so.
    """
    if not PREFIX.fullmatch(text):
        return text
    client = connect().client
    found = client.search_runs(every_experiment(client, ViewType.ALL), f"attributes.run_id LIKE '{text}%'", max_results=3)
    if len(found) > 1:
        raise ValueError(
            f"{text} is the beginning of several runs, {', '.join(sorted(run.info.run_id for run in found))}: give more of it"
        )
    return found[0].info.run_id if found else text


def with_whole_ids(options: OptionsType) -> OptionsType:
    """The options with every run that they name by its whole id.

    Raises:
        ValueError: several runs begin as one is given.
    """
    named = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name.endswith(RUN_IDS)}
    whole = {name: ",".join(whole_id(part.strip()) for part in value.split(",")) for name, value in named.items() if value}
    return dataclasses.replace(options, **whole) if any(whole[name] != named[name] for name in whole) else options
