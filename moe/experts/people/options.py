"""What is learnt of people, and how."""

import dataclasses

from moe.options import Options, listed, option

WEIGHTS, EXPERT, BOTH, AUTO = "weights", "expert", "both", "auto"
AS_IT_IS = "as it is"
OF_EXPERT = ("person_r", "person_targets", "person_learning_rate")  # options that only an expert reads


@dataclasses.dataclass(frozen=True)
class PersonOptions(Options):
    """What is learnt of a person, in how many passes over what they said."""

    group = "person"

    learn: str = option(
        AUTO,
        "weights: their own of the mixture's experts; expert: a LoRA of their own; both; auto: what the choosing part likes best",
        choices=(WEIGHTS, EXPERT, BOTH, AUTO),
    )
    person_r: int = option(8, "rank of a person's expert", low=1)
    person_targets: str = option("q_proj,v_proj", "linear layers that a person's expert changes, by the end of their name")
    person_learning_rate: float = option(1e-3, "learning rate of a person's expert", above=0)
    weights_learning_rate: float = option(5e-2, "learning rate of a person's weights", above=0)
    person_passes: int = option(5, "most passes over a person's utterances; the best one is kept, the start among them", low=1)
    choose_margin: float = option(
        1.0, "standard errors by which the loss of the choosing part must fall, else a person is kept as they are", low=0
    )
    person_batch_size: int = option(5, "utterances of a person in an update", low=1)

    def idle(self) -> dict[str, str]:
        """What only the other way of learning reads."""
        names = {WEIGHTS: OF_EXPERT, EXPERT: ("weights_learning_rate",)}.get(self.learn, ())
        return dict.fromkeys(names, f"learn={self.learn} does not read it")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the layers that a person's expert changes."""
        return tuple(listed(self.person_targets))


@dataclasses.dataclass(frozen=True)
class PartOptions(Options):
    """How what a person said is divided, by whole sentences."""

    group = "person"

    choose_share: float = option(0.2, "share of a person's utterances to choose by, at least 2", above=0, high=0.8)
    held_back_share: float = option(0.3, "share of a person's utterances held back for the proof, at least 5", above=0, high=0.8)

    def faults(self) -> list[str]:
        """Nothing left to learn from."""
        if self.choose_share + self.held_back_share <= 0.9:
            return []
        return [
            f"choose_share={self.choose_share:g} and held_back_share={self.held_back_share:g} must leave a tenth to learn from"
        ]
