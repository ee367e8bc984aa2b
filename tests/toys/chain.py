"""Options of one run of a chain whose earlier runs do not exist yet."""

from types import ModuleType

from moe.options import Options
from steps.chain.options import ChainOptions
from steps.chain.stages import idle_options, planned, stage_options


def pending_options(module: ModuleType, options: ChainOptions) -> Options:
    """The options with which the chain starts a step the first time."""
    given = next(given for each, given in planned(options) if each is module)
    idle = idle_options(module, options, given)
    return stage_options(module, options, **{name: value for name, value in given.items() if name not in idle})
