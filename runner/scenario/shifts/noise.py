"""Gaussian noise that grows from group to group."""

from zlib import crc32

import numpy as np
from pydantic import Field

from fedsweep.scenario.shift import SeenShift
from fedsweep.seeding import derive_seed


class Noise(SeenShift):
    """Noise in grey levels; group 0 has none."""

    noise_std: float = Field(
        64.0,
        gt=0,
        le=255,
        description="last group's noise in grey levels (0 to 255); group 0 has none",
    )

    def view(self, x: np.ndarray, group: int, seed: int) -> np.ndarray:
        """Return images uint8 (n, C, H, W) as that group sees them."""
        std = self.noise_std * group / max(1, self.groups - 1)
        return add_noise(x, std, derive_seed(seed, "shift", "noise", group))


def add_noise(x: np.ndarray, std: float, seed: int) -> np.ndarray:
    """Return images uint8 (n, C, H, W) with noise of ``std`` grey levels, clipped to 0..255.

    An image's noise follows from its pixels and the seed: it is the same in any slice, order and
    process.
    """
    if std == 0:
        return x
    noisy = np.empty_like(x)
    for image, out in zip(x, noisy, strict=True):
        rng = np.random.default_rng([seed, crc32(image.tobytes())])
        out[:] = np.rint(image + std * rng.standard_normal(image.shape, np.float32)).clip(0, 255)
    return noisy
