"""Each group has some of the classes only; the partition deals out their examples."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsweep.errors import DataError
from fedsweep.scenario.shift import ClassSets, GroupedShift
from fedsweep.seeding import derive_seed
from fedsweep.strategies.ranges import EXAMPLES


class LabelGroups(GroupedShift):
    """Equal shares of the shuffled classes, or so many from evenly spaced places on their ring."""

    needs: ClassVar[Literal["", "images", "classes"]] = "classes"

    classes_per_group: int | None = Field(
        None,
        ge=1,
        le=EXAMPLES,
        description="classes of each group, shared with others where they do not suffice; null "
        "deals out all",
    )

    def class_sets(self, num_classes: int, seed: int) -> ClassSets:
        """Return the classes of each group.

        Raises
        ------
        DataError
            There are more groups, or classes in each, than the data set has classes.
        """
        per_group = self.classes_per_group
        if self.groups > num_classes or (per_group or 1) > num_classes:
            raise DataError(
                f"shift=label_groups with groups={self.groups}, classes_per_group={per_group}: the "
                f"data set has {num_classes} classes; lower shift.groups or shift.classes_per_group"
            )
        rng = np.random.default_rng(derive_seed(seed, "shift", "classes"))
        order = rng.permutation(num_classes)
        if per_group is None:
            parts = np.array_split(order, self.groups)
        else:
            starts = [group * num_classes // self.groups for group in range(self.groups)]
            places = [range(start, start + per_group) for start in starts]
            parts = [np.take(order, place, mode="wrap") for place in places]
        return tuple(tuple(sorted(part.tolist())) for part in parts)
