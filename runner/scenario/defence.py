"""What a defence is: what a server does to updates before a method takes its mean of them.

It goes with any mean, in clusters too: there it sees the updates of one cluster at a time. Shapes:
C clients that began with the same model, P trained parameters.
"""

from abc import abstractmethod
from typing import ClassVar

from pydantic import Field

from fedsweep.strategies.settings import Settings
from fedsweep.strategies.updates import Rows


class Defence(Settings):
    """What is done to updates before their mean; as it stands, nothing."""

    defends: ClassVar[bool] = False
    """Whether anything is done."""

    name: str = Field("none", description="what is done to updates before their mean is taken")

    def check_in(self, cohort: int) -> None:
        """Refuse a cohort, of so many clients in the smallest round, that it does nothing for.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """

    def defend(self, updates_CP: Rows) -> Rows:
        """Return what the mean is taken of, (C, P); the updates are finite."""
        return updates_CP


class Defender(Defence):
    """A defence of one's own is a class derived from this one, in a file."""

    defends: ClassVar[bool] = True

    @abstractmethod
    def defend(self, updates_CP: Rows) -> Rows:
        """Return what the mean is taken of, (C, P); the updates are finite."""
