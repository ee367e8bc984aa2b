"""What a sweep takes beside the options of `main`."""

import dataclasses

import joblib

from moe.options import listed, names_of, option
from moe.systems.table import SYSTEMS
from steps import register
from steps.chain.options import BASE, MIXTURE, ChainOptions
from steps.sweeps.chains import not_varied, own_names, selected_metric
from steps.sweeps.space import Dimension, read_space, size_of_grid
from steps.sweeps.study import GRID, SAMPLERS


@dataclasses.dataclass(frozen=True)
class SweepOptions(ChainOptions):
    """What a sweep takes beside the options of `main`; `sampler` has no choices, so that its fault is said with those of the space."""

    sweep_system: str = option(
        MIXTURE, "the system whose options are tried", choices=tuple(name for name in SYSTEMS if name != BASE)
    )
    space: str = option("{}", "what is varied, a YAML table; in an options file each option stands on a line of its own")
    sampler: str = option("tpe", f"how trials are drawn, one of {', '.join(SAMPLERS)}; tpe draws the first ten at random")
    trials: int | None = option(None, "trials of the whole sweep (none: the whole grid)", low=1)
    sweep_metric: str | None = option(None, "dev metric to be low, as dev/wer (none: that by which the system keeps its epoch)")
    seeds: str | None = option(None, "seeds that every trial is trained with, comma list; their mean counts (none: seed)")
    halving: int | None = option(
        None,
        "N: after 1, N, N², … validations a trial trains on only among the best N-th of those so far (none: all train on)",
        low=2,
    )
    parallel_trials: int = option(1, "trials side by side on this machine, each in a process with its share of the cores", low=1)
    finalists: int = option(2, "best trials to compare on the test set, beside the options as given", low=1)
    finalist_seeds: str | None = option(None, "seeds that the finalists are trained with, comma list (none: those of the trials)")

    gathered = "space"

    def faults(self) -> list[str]:
        """What is wrong with the sampler, the space, the metric and the seeds."""
        found = [] if self.sampler in SAMPLERS else [f"sampler={self.sampler}: must be one of {', '.join(SAMPLERS)}"]
        found += self._space_faults()
        if self.sweep_metric not in (None, self.selected):
            found.append(
                f"sweep_metric={self.sweep_metric}: must be {self.selected}, by which {self.sweep_system} keeps its epoch; no trial reads the test set"
            )
        return (
            found
            + self._process_faults()
            + _seed_faults("seeds", self.seeds)
            + _seed_faults("finalist_seeds", self.finalist_seeds)
        )

    def idle(self) -> dict[str, str]:
        """What a sweep decides or does not do, and what every trial would write to one place."""
        idle = dict.fromkeys(own_names(register), "a sweep registers nothing")
        idle |= dict.fromkeys(("export_dir", "push_to_hub"), "every trial would write there")
        idle |= {"systems": "set sweep_system", "until": "trials end with the training, a sweep with compare"}
        return idle | {"force": "trials share their stages"}

    @property
    def chain_names(self) -> list[str]:
        """The options of `main`."""
        return names_of(type(self), but=SweepOptions.__annotations__)

    @property
    def selected(self) -> str:
        """The dev metric by which the system keeps its epoch, and the sweep its trials."""
        return selected_metric(self.sweep_system, vars(self))

    @property
    def dimensions(self) -> list[Dimension]:
        """What is varied.

        Raises:
            ValueError: all faults of all options.
        """
        fields = type(self).__dataclass_fields__
        return read_space(self.space, {name: fields[name] for name in self.chain_names}, not_varied(self.sweep_system, self))

    @property
    def n_trials(self) -> int | None:
        """Trials of the whole sweep; None where nothing says it.

        Raises:
            ValueError: a grid over a range, or all faults of the space.
        """
        dimensions = self.dimensions
        n_all = size_of_grid(dimensions) if self.sampler == GRID else None
        return n_all if self.trials is None else self.trials

    @property
    def trial_seeds(self) -> list[int]:
        """The seeds of every trial."""
        return [self.seed] if self.seeds is None else [int(seed) for seed in listed(self.seeds)]

    @property
    def last_seeds(self) -> list[int]:
        """The seeds of every finalist."""
        return self.trial_seeds if self.finalist_seeds is None else [int(seed) for seed in listed(self.finalist_seeds)]

    def _process_faults(self) -> list[str]:
        n_cores, n_processes = joblib.cpu_count(), vars(self)["num_processes"]
        found = []
        if self.parallel_trials > 1 and self.parallel_trials * n_processes > n_cores:
            asked = f"parallel_trials={self.parallel_trials}" + (f" with num_processes={n_processes}" if n_processes > 1 else "")
            found.append(f"{asked}: this machine has {n_cores} cores")
        if self.halving is not None and n_processes > 1:
            found.append(
                f"halving={self.halving}: num_processes={n_processes} trains where no trial is stopped; set parallel_trials"
            )
        return found

    def _space_faults(self) -> list[str]:
        try:
            return [] if self.n_trials else [f"sampler={self.sampler}: set trials, the number of trials"]
        except ValueError as error:
            return [str(error)]


def _seed_faults(name: str, text: str | None) -> list[str]:
    seeds = listed(text or "")
    if text is None or (seeds and all(seed.isdecimal() for seed in seeds) and len({*map(int, seeds)}) == len(seeds)):
        return []
    return [f"{name}={text}: must be whole numbers from 0 on, comma list, each once"]
