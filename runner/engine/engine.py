"""Ray and its hosts for a sweep, started again where Ray's processes on this machine have died."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from ray.exceptions import RayError, RayTaskError

from fedsweep.config import ResourcesConfig
from fedsweep.engine.pool import HostPool, lost, ray_session
from fedsweep.errors import EngineLost, ResourceError

STARTS = 3
"""Times in a row that Ray is started without getting anywhere before that is given up."""

T = TypeVar("T")


class Engine:
    """A Ray session and a pool of hosts.

    Parameters
    ----------
    resources : ResourcesConfig
        Where, and which hosts.
    warm : callable
        What else is made ready, at each start, while the hosts come up.
    say : callable
        Tells the user, in a line, that Ray is started again and why.

    Attributes
    ----------
    pool : HostPool
        The hosts there are now; another pool after each start.

    Raises
    ------
    ResourceError
        There is no such cluster, it has no room for the hosts, or Ray died at each of several
        starts.
    """

    pool: HostPool

    def __init__(
        self,
        resources: ResourcesConfig,
        warm: Callable[[HostPool], None],
        say: Callable[[str], None],
    ) -> None:
        self._resources, self._warm, self._say = resources, warm, say
        self._open = ExitStack()
        self._starts = 0
        self._start_hosts()

    def do(self, work: Callable[[HostPool], T]) -> T:
        """Return what a function makes of the pool;
        a function whose Ray dies under it is run again.

        Raises
        ------
        ResourceError
            Ray died at each of several tries.
        """
        while True:
            try:
                if lost():
                    raise EngineLost("Ray's processes on this machine died")
                return work(self.pool)
            except RayTaskError:  # Ray is well: this is what was asked of it
                raise
            except (RayError, EngineLost) as error:
                self.restart(_line(error))

    def lost(self) -> bool:
        """Return whether Ray's processes on this machine have died, with all that they held."""
        return lost()

    def restart(self, reason: str) -> None:
        """Start Ray and the hosts again; what the old ones held is gone."""
        self._give_up_or_say(reason)
        self._open.close()
        self._start_hosts()

    def works(self) -> None:
        """Note that the sweep got somewhere: from here on, starts are counted anew."""
        self._starts = 0

    def close(self) -> None:
        """End the hosts and, where it was started here, Ray."""
        self._open.close()

    def _start_hosts(self) -> None:
        while True:
            self._starts += 1
            try:
                self._open.enter_context(ray_session(self._resources.address))
                self.pool = HostPool(self._resources, self._say)
                self._open.callback(self.pool.close)
                self._warm(self.pool)
                return
            except (RayError, EngineLost) as error:
                self._open.close()
                self._give_up_or_say(_line(error))
            except BaseException:
                self._open.close()
                raise

    def _give_up_or_say(self, reason: str) -> None:
        if self._starts >= STARTS:
            where = self._resources.address or "this machine"
            raise ResourceError(
                f"Ray on {where} died {self._starts} times in a row: {reason}; free memory there, "
                "or lower resources.trials"
            )
        self._say(f"Ray is started again: {reason}")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
