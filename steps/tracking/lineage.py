"""What a run was made from, for whoever looks at it in the UI: the options of every run before it, and links to them."""

from collections.abc import Mapping

from moe.files import read_json
from steps.tracking.artifacts import FINGERPRINT, lineage, upstream
from steps.tracking.names import RUN_IDS
from steps.tracking.store import connect


def lineage_parameters(run_id: str, own: Mapping[str, str]) -> dict[str, str]:
    """Every option that made a run, of the run itself and of all runs before it, nearest first, but for those among `own`.

    An option that has another value there is named after its step: `prepare_seed` beside `seed`.
    """
    found, client = dict(own), connect().client
    for earlier, step in lineage(run_id).items():
        counted = read_json(upstream(earlier, FINGERPRINT))["parameters"]  # what can change a result
        for name, value in client.get_run(earlier).data.params.items():
            if name in counted and not name.endswith(RUN_IDS) and found.setdefault(name, value) != value:
                found.setdefault(f"{step}_{name}", value)
    return {name: value for name, value in found.items() if name not in own}


def run_link(run_id: str, text: str) -> str:
    """A run as a link that the UI's descriptions follow, in Markdown."""
    experiment_id = connect().client.get_run(run_id).info.experiment_id
    return f"[{text}](#/experiments/{experiment_id}/runs/{run_id})"


def lineage_links(run_id: str) -> str:
    """Every run that a run was made from, as a list of links, nearest first."""
    return "\n".join(f"- {run_link(earlier, step)} `{earlier}`" for earlier, step in lineage(run_id).items() if earlier != run_id)
