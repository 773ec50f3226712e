"""Examples as bytes on the device, kept in one tensor: a batch of many clients is one gather.

Bytes are a quarter of floats, so four times the clients stay where they were staged (and shifted: a
rotation is worked out once); what a batch takes is normalised when it is gathered, which costs what
the gather does.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from fedsweep.training.local import distort

MAX_BYTES = 256 * 2**20
"""Size at which a pool is emptied; sets that are asked for together may exceed it."""

Place = tuple[int, int]
"""Where a set lies in a pool: the first row, and how many."""

Read = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Returns images uint8 (n, C, H, W) and labels (n,)."""


@dataclass(frozen=True)
class Examples:
    """Examples (N, ...) and targets (N,): images (N, C, H, W) and labels int64, as a rule.

    Bytes of images become floats, normalised, when they are taken; symbols become int64.
    """

    x: Tensor  # uint8, whole numbers, or floats that are taken as they are
    y: Tensor
    mean: Tensor | None = None  # (C, 1, 1), of images in [0, 1]
    std: Tensor | None = None

    def images(self, rows: Tensor | slice, how: Tensor | None = None) -> Tensor:
        """Return examples (n, ...) as networks take them, images distorted as ``how`` says."""
        x = self.x[rows] if isinstance(rows, slice) else self.x.index_select(0, rows)
        if how is not None:
            x = distort(x, how)
        if x.is_floating_point():
            return x
        if self.mean is None or self.std is None:
            return x.long()
        return x.float().div_(255).sub_(self.mean).div_(self.std)

    def at(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return a set: float images (n, C, H, W) and labels (n,)."""
        rows = slice(place[0], sum(place))
        return self.images(rows), self.y[rows]

    def labels(self, places: Sequence[Place]) -> Tensor:
        """Return the labels of sets, one after the other."""
        return torch.cat([self.y[first : first + count] for first, count in places])


class ExamplePool:
    """Sets of examples, each read once while the pool has room; then it begins anew.

    Parameters
    ----------
    mean, std : sequence of float
        Per channel, for images in [0, 1]; empty where examples are no images.
    device : torch.device
        Bytes travel there, and floats are made there.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1) if mean else None
        self._std = torch.tensor(std, device=device).view(-1, 1, 1) if std else None
        self._device = device
        self._places: dict[Hashable, Place] = {}
        self._used = 0
        self._x = torch.empty(0, dtype=torch.uint8, device=device)
        self._y = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def all(self) -> Examples:
        """Everything that is in the pool."""
        return Examples(self._x, self._y, self._mean, self._std)

    def places(self, sets: dict[Hashable, Read]) -> list[Place]:
        """Return where each set lies in ``all``: first row and number of rows.

        It holds until the next call.
        """
        missing = [key for key in sets if key not in self._places]
        if missing:
            new = {key: sets[key]() for key in missing}
            per_example = _bytes_each(next(iter(new.values()))[0])
            if (self._used + sum(len(y) for _, y in new.values())) * per_example > MAX_BYTES:
                self._places.clear()
                self._used = 0
                new = {key: new[key] if key in new else read() for key, read in sets.items()}
            self._append(new)
        return [self._places[key] for key in sets]

    def examples(self, key: Hashable, read: Read) -> tuple[Tensor, Tensor]:
        """Return one set: normalised images (n, C, H, W) and labels int64 (n,)."""
        [place] = self.places({key: read})
        return self.all.at(place)

    def _append(self, new: dict[Hashable, tuple[np.ndarray, np.ndarray]]) -> None:
        # The copy owns its memory: the data set's is read-only.
        x = torch.from_numpy(np.concatenate([x for x, _ in new.values()])).to(self._device)
        targets = np.concatenate([y for _, y in new.values()])
        kind = np.float32 if targets.dtype.kind == "f" else np.int64
        y = torch.from_numpy(targets.astype(kind)).to(self._device)
        end = self._used + len(y)
        if len(self._y) < end or self._x.shape[1:] != x.shape[1:]:
            room = min(max(end, 2 * len(self._y)), max(end, MAX_BYTES // _bytes_each(x)))
            # A new tensor: views of the old one, which a task may still hold, keep their values.
            grown_x, grown_y = x.new_empty(room, *x.shape[1:]), y.new_empty(room)
            if self._used:
                grown_x[: self._used], grown_y[: self._used] = (
                    self._x[: self._used],
                    self._y[: self._used],
                )
            self._x, self._y = grown_x, grown_y
        self._x[self._used : end], self._y[self._used : end] = x, y
        for key, (_, own) in new.items():
            self._places[key] = self._used, len(own)
            self._used += len(own)


def _bytes_each(x: "np.ndarray | Tensor") -> int:
    """Return the bytes of an example."""
    return max(1, prod(x.shape[1:])) * int(x.itemsize)
