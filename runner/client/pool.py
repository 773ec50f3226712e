"""Normalised examples on the device, kept from task to task in one tensor: a batch of many clients is one gather."""

from collections.abc import Callable, Hashable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 256 * 2**20
"""Size at which a pool is emptied; sets that are asked for together may exceed it."""

Read = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Returns images uint8 (n, C, H, W) and labels (n,)."""


class ExamplePool:
    """Sets of examples, each read and normalised once while the pool has room; then it begins anew.

    Parameters
    ----------
    mean, std : sequence of float
        Per channel, for images in [0, 1].
    device : torch.device
        Bytes travel there, floats are made there.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(std, device=device).view(-1, 1, 1)
        self._device = device
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._used = 0
        self.x = torch.empty(0, device=device)
        self.y = torch.empty(0, dtype=torch.int64, device=device)

    def places(self, sets: dict[Hashable, Read]) -> list[tuple[int, int]]:
        """Return where each set lies in ``x`` and ``y``: first row and number of rows. It holds until the next call."""
        missing = [key for key in sets if key not in self._places]
        if missing:
            new = {key: sets[key]() for key in missing}
            per_image = 4 * prod(next(iter(new.values()))[0].shape[1:])
            if (self._used + sum(len(y) for _, y in new.values())) * per_image > MAX_BYTES:
                self._places.clear()
                self._used = 0
                new = {key: new[key] if key in new else read() for key, read in sets.items()}
            self._append(new)
        return [self._places[key] for key in sets]

    def examples(self, key: Hashable, read: Read) -> tuple[Tensor, Tensor]:
        """Return one set: normalised images (n, C, H, W) and labels int64 (n,)."""
        [(start, count)] = self.places({key: read})
        return self.x[start : start + count], self.y[start : start + count]

    def _append(self, new: dict[Hashable, tuple[np.ndarray, np.ndarray]]) -> None:
        # The copy owns its memory: the data set's is read-only.
        images = np.concatenate([x for x, _ in new.values()])
        labels = np.concatenate([y for _, y in new.values()]).astype(np.int64)
        x = torch.from_numpy(images).to(self._device).float().div_(255).sub_(self._mean).div_(self._std)
        end = self._used + len(labels)
        if len(self.y) < end or self.x.shape[1:] != x.shape[1:]:
            room = min(max(end, 2 * len(self.y)), max(end, MAX_BYTES // (4 * prod(x.shape[1:]))))
            # A new tensor: views of the old one, which a task may still hold, keep their values.
            grown_x, grown_y = x.new_empty(room, *x.shape[1:]), self.y.new_empty(room)
            if self._used:
                grown_x[: self._used], grown_y[: self._used] = self.x[: self._used], self.y[: self._used]
            self.x, self.y = grown_x, grown_y
        self.x[self._used : end] = x
        self.y[self._used : end] = torch.from_numpy(labels).to(self._device)
        for key, (_, own) in new.items():
            self._places[key] = self._used, len(own)
            self._used += len(own)
