"""What the chain itself reads of its options; those of its stages it passes on (`steps.main.StepOptions` has both)."""

import dataclasses
from typing import Any, Self

from moe.corpora.formats.table import FORMATS
from moe.options import NONE, listed, option
from moe.systems.table import SYSTEMS
from steps.options.step_options import SYNTHETIC, PlotOptions, SeedOptions, SkipPretrainingOptions
from steps.pretrain import BaseOptions

STAGE_NAMES = (
    "synthesize", "prepare", "pretrain", "embed", "cluster", "gate", "experts", "asr", "baseline", "decoder", "steer", "ctc", "domain", "evaluate",
    "compare", "register",
)  # fmt: skip
MIXTURE, LORA, BASE, STEER = "whisper_moe", "single_lora", "zero_shot", "steer_moe"
CTC, DOMAIN = "wav2vec2_ctc", "domain_whisper"
QUICK = "quick"
SMALL = {
    "n_train_speakers": 3, "n_dev_speakers": 1, "n_test_speakers": 2, "n_utterances": 8, "n_dev_utterances": 4, "n_test_utterances": 5,
    "expert_epochs": 1, "asr_epochs": 1, "gating_epochs": 20, "ctc_epochs": 1, "domain_epochs": 1, "steer_epochs": 1, "max_samples": 240,
}  # fmt: skip
SMALL_BASE = {"pretrain_updates": 20, "missing_updates": 10}  # where one is made
OF_FEW_SPEAKERS = {"max_quarantined": 0.2}  # three speakers of a fast style: 9.0 % are too fast for the shipped CTC, of all 3.7 %


@dataclasses.dataclass(frozen=True)
class ChainOptions(BaseOptions, SkipPretrainingOptions, SeedOptions, PlotOptions):
    """What `main` takes beside the options of its stages."""

    mode: str = option(
        "full",
        "quick is a smoke test: few utterances, one epoch; what you set yourself is kept",
        choices=(QUICK, "full"),
        common=True,
    )
    corpus: str = option(SYNTHETIC, "format of the corpus", choices=tuple(FORMATS), common=True)
    options_file: str | None = option(
        None, "YAML or JSON file of options, e.g. presets/a100-40gb.yaml; what you set yourself wins", common=True
    )
    corpus_seed: int | None = option(
        None, "seed of synthesize and prepare, to train several seeds on one corpus (none: seed)", low=0
    )
    systems: str = option(
        "whisper_moe,single_lora,zero_shot",
        f"systems to train, evaluate and compare, comma list of {', '.join(SYSTEMS)}",
        common=True,
    )
    systems_together: int = option(
        1,
        "systems trained and evaluated at a time, each in a process with its share of the cores or a GPU of its own; one LoRA then gets what "
        "is planned for the mixture, and is trained again where that turns out otherwise",
        low=1,
    )
    until: str = option("register", "the last stage to run", choices=STAGE_NAMES, common=True)
    force: str = option(
        NONE,
        "run this stage though it could be reused, and with `all` every stage",
        choices=(NONE, "all", *STAGE_NAMES),
        common=True,
    )
    accept_changes: bool = option(
        False,
        "reuse stages although code or libraries changed since; each such run is tagged with what changed and counts from then on",
    )

    not_in_fingerprint = frozenset({"systems_together"})

    @classmethod
    def asked(cls, **given: Any) -> Self:
        """`mode=quick` fills in the small numbers of a smoke test."""
        return super().asked(**(_quick(given) if given.get("mode") == QUICK else {}) | given)

    @property
    def system_names(self) -> list[str]:
        """The systems as a list."""
        return listed(self.systems)

    def faults(self) -> list[str]:
        """Names that are no systems, one named twice, and one LoRA without the mixture that gives it its size."""
        named = self.system_names
        found = [f"systems={name}: there are {', '.join(SYSTEMS)}" for name in named if name not in SYSTEMS]
        found += [f"systems={self.systems}: {name} is named twice" for name in dict.fromkeys(named) if named.count(name) > 1]
        if LORA in named and MIXTURE not in named:
            found.append(f"systems={self.systems}: {LORA} gets the size and the updates of {MIXTURE}, so name {MIXTURE} too")
        return found or ([] if named else [f"systems is empty: there are {', '.join(SYSTEMS)}"])


def _quick(given: dict[str, Any]) -> dict[str, Any]:
    """An own corpus keeps its limit, which finds what is broken; nothing in a synthetic one is."""
    base = {} if BaseOptions.unchecked(given).is_taken else SMALL_BASE
    return SMALL | base | (OF_FEW_SPEAKERS if given.get("corpus", SYNTHETIC) == SYNTHETIC else {})
