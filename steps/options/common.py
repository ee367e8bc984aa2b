"""Options that say how a run is started and shown, not what it finds: every step has `resume` and `log_file`, one with pictures `no_plot`."""

import dataclasses

from moe.options import Options, option


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """What every step takes."""

    resume: bool = option(True, "go on in the run and the work that an interrupted start left; false discards them")
    log_file: str | None = option(None, "file to which all logging of the run is added; the run keeps a copy")

    not_in_fingerprint = frozenset({"resume", "log_file"})


@dataclasses.dataclass(frozen=True)
class PlotOptions(RunOptions):
    """What every step that draws takes."""

    no_plot: bool = option(False, "make no plots; a run that is reused keeps those it has")

    not_in_fingerprint = frozenset({"no_plot"})
