"""The bar of a training: updates done, updates in a second, time left and the last loss, for every kind of training alike."""

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from moe.progress import progress


class UpdateBar(TrainerCallback):
    """Shows a bar from the first update, or the one where an interrupted training goes on, until `close`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Of several processes the first shows it."""
        self._bar = progress(self.title, state.max_steps, "updates", state.global_step, shown=state.is_world_process_zero)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """One update more."""
        if self._bar is not None:
            self._bar.update()

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """The loss beside the bar."""
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)

    def close(self) -> None:
        """Take the bar away, however the training ended."""
        if self._bar is not None:
            self._bar.close()
