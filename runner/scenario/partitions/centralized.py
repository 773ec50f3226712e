"""One client holds everything: the centralized baseline."""

from typing import ClassVar

from fedsweep.scenario.partitions.iid import Iid


class Centralized(Iid):
    """There is one client, whatever the trial's number of them."""

    one_client: ClassVar[bool] = True
