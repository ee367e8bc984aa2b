"""One channel out of several: their mean, unless they cancel each other, or the first or the loudest of them."""

import numpy as np

CHANNELS = ("mix", "first", "loudest")
CHANNELS_HELP = "of several channels: mix (the loudest where they cancel each other), first or loudest"
CANCELLED = 0.2  # a mean below this share of the power that unrelated channels would leave it has lost the speech
SPARSE = 7  # of long blocks every so many frames are looked at
LONG_FRAMES = 1 << 14
FEWEST_FRAMES = 256  # in fewer, unrelated channels may cancel by chance


class ChannelMixer:
    """Mixes blocks of a recording and remembers the power of each channel about its mean, so that an offset does not count."""

    def __init__(self) -> None:
        self.n_frames = 0
        self._products = np.zeros((0, 0))  # (n_channels, n_channels): sums over the frames of the products of two channels

    def mix(self, block: np.ndarray) -> np.ndarray:
        """The mean of the channels of float32 samples, (n_frames, n_channels) → (n_frames,)."""
        if block.shape[1] > 1 and len(block):
            self._add(block)
        return _mean(block)

    def choose(self, wanted: str) -> int | None:
        """The channel to take instead of the mix, from 0; None for the mix. `wanted` is one of `CHANNELS`."""
        if not self.n_frames:
            return None
        loudest = int(np.argmax(np.diag(self._products)))
        return {"first": 0, "loudest": loudest}.get(wanted, loudest if self._is_cancelled() else None)

    def _is_cancelled(self) -> bool:
        """Unrelated channels have a mean whose power is the sum of theirs over n²; channels that cancel leave far less."""
        unrelated, mixed = float(np.trace(self._products)), float(self._products.sum())
        return self.n_frames >= FEWEST_FRAMES and mixed < CANCELLED * unrelated

    def _add(self, block: np.ndarray) -> None:
        block = block[::SPARSE] if len(block) > LONG_FRAMES else block
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused when all is decoded
            centred = block - np.ones(len(block), np.float32) @ block / len(block)
            products = (centred.T @ centred).astype(np.float64)
        self._products = self._products + products if self.n_frames else products
        self.n_frames += len(block)


def _mean(block: np.ndarray) -> np.ndarray:
    """Channel by channel: numpy's own mean over the short axis is slow."""
    mixed = block[:, 0].copy()  # (n_frames,)
    for channel in range(1, block.shape[1]):
        mixed += block[:, channel]
    return mixed / block.shape[1] if block.shape[1] > 1 else mixed
