"""Names for evaluated models: two mixtures that differ in an option are two systems, not two seeds of one.

The options are those of every run along a model's lineage that can change a result, read from the fingerprints the runs keep.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from analysis.systems import BASE, CONTROL, SystemScores
from moe.files import read_json
from moe.routing.options import RoutingOptions
from steps.tracking import artifacts

Choice = tuple[str, str]  # step, option
SHARED_STEPS = (
    "synthesize",
    "prepare",
    "pretrain",
    "evaluate",
)  # that every system comes from; a mixture or candidate comes from all
UNTOLD = frozenset({"seed", "decoding_batch_size", "ablations", "ablation_utterances", "explorer_audio_mb", "scoring"})
UNTOLD_OF_LORA = frozenset(field.name for field in dataclasses.fields(RoutingOptions))  # it has, but nothing to route
MAX_VALUE = 60
OPTIONS = " · "  # between a title and the options that set it apart


def tell_apart(systems: Sequence[SystemScores]) -> list[SystemScores]:
    """The systems, each with the options in its name that set it apart from others of that name: `Whisper-MoE · top_k=1`.

    A value that more of them have than any other stays unsaid, so of ten runs the usual ones keep the plain name.
    """
    chosen = [choices(system) for system in systems]
    names = [system.name for system in systems]
    differing = {
        name: _differing([one for one, other in zip(chosen, names, strict=True) if other == name]) for name in set(names)
    }
    return [
        dataclasses.replace(system, name=_name(system.name, one, differing[system.name]))
        for system, one in zip(systems, chosen, strict=True)
    ]


def metric_names(systems: Sequence[SystemScores]) -> dict[str, str]:
    """Name of each system in metrics: its row in the table of systems, and the options that `tell_apart` added, as `whisper_moe top_k-1`."""
    return {system.name: " ".join([system.system, *_said(system.name)]) for system in systems}


def _said(name: str) -> list[str]:
    """The options in a name, in letters that a metric's name may hold."""
    return [option.replace("=", "-") for option in name.partition(OPTIONS)[2].split(", ") if option]


def choices(system: SystemScores) -> dict[Choice, str]:
    """Every option that made an evaluated model and its hypotheses, by step and name."""
    found: dict[Choice, str] = {}
    for run_id, step in artifacts.lineage(system.run_id).items():
        is_own = system.role not in (BASE, CONTROL) or (step == "baseline" and system.role == CONTROL)
        if is_own or step in SHARED_STEPS:
            parameters = read_json(artifacts.upstream(run_id, artifacts.FINGERPRINT))["parameters"]
            untold = UNTOLD | UNTOLD_OF_LORA if step == "baseline" else UNTOLD
            kept = {
                name: value
                for name, value in parameters.items()
                if name not in untold and not name.endswith(("_run_id", "_run_ids"))
            }
            found = {
                (step, name): value for name, value in kept.items()
            } | found  # the nearest run of a step is the one that counts
    return found


def _differing(chosen: Sequence[Mapping[Choice, str]]) -> dict[Choice, str | None]:
    """The choices in which systems of one name differ, each with the value that goes without saying, if any."""
    differing = {}
    for choice in dict.fromkeys(choice for one in chosen for choice in one):
        counts = Counter(one[choice] for one in chosen if choice in one).most_common()
        if len(counts) > 1:
            differing[choice] = counts[0][0] if counts[0][1] > counts[1][1] else None
    return differing


def _name(name: str, chosen: Mapping[Choice, str], differing: Mapping[Choice, str | None]) -> str:
    said = {choice[1]: chosen[choice] for choice, usual in differing.items() if choice in chosen and chosen[choice] != usual}
    return (
        f"{name}{OPTIONS}{', '.join(f'{option}={value[:MAX_VALUE]}' for option, value in sorted(said.items()))}" if said else name
    )
