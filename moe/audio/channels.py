"""One channel out of several: their mean, unless they cancel each other, or the first or the loudest of them."""

import numpy as np

CHANNELS = ("mix", "first", "loudest")
CANCELLED = 0.2  # a mean below this share of the power that unrelated channels would leave it has lost the speech
FEWEST_FRAMES = 256  # in fewer, unrelated channels may cancel by chance


class ChannelMixer:
    """Mixes blocks of a recording and remembers the power of each channel about its mean, so that an offset does not count."""

    def __init__(self) -> None:
        self.n_frames = 0
        self._sums: np.ndarray | None = None  # (2, n_channels + 1): of samples and of squares; the mix is the last

    def mix(self, block: np.ndarray) -> np.ndarray:
        """The mean of the channels of float32 samples, (n_frames, n_channels) → (n_frames,)."""
        mixed = _mean(block)
        if block.shape[1] > 1:
            self._add(block, mixed)
        return mixed

    def choose(self, wanted: str) -> int | None:
        """The channel to take instead of the mix, from 0; None for the mix. `wanted` is one of `CHANNELS`."""
        if self._sums is None or not self.n_frames:
            return None
        if wanted == "first":
            return 0
        *powers, mixed = self._powers()
        loudest = int(np.argmax(powers))
        return loudest if wanted == "loudest" or self._is_cancelled(np.array(powers), mixed) else None

    def _is_cancelled(self, powers: np.ndarray, mixed: float) -> bool:
        unrelated = float(powers.sum()) / len(powers) ** 2  # the power that the mean of unrelated channels has
        return self.n_frames >= FEWEST_FRAMES and mixed < CANCELLED * unrelated

    def _powers(self) -> np.ndarray:
        sums, squares = self._sums / self.n_frames
        return np.maximum(squares - sums**2, 0.0)  # (n_channels + 1,)

    def _add(self, block: np.ndarray, mixed: np.ndarray) -> None:
        columns = [*(block[:, channel] for channel in range(block.shape[1])), mixed]
        sums = np.array([[column.sum(dtype=np.float64) for column in columns], [_energy(column) for column in columns]])
        self._sums = sums if self._sums is None else self._sums + sums
        self.n_frames += len(block)


def _energy(column: np.ndarray) -> float:
    return float(np.einsum("i,i->", column, column, dtype=np.float64))


def _mean(block: np.ndarray) -> np.ndarray:
    """Channel by channel: numpy's own mean over the short axis is slow."""
    mixed = block[:, 0].copy()  # (n_frames,)
    for channel in range(1, block.shape[1]):
        mixed += block[:, channel]
    return mixed / block.shape[1] if block.shape[1] > 1 else mixed
