"""The driver's one way to MLflow: it opens the runs of sweeps and trials."""

from collections.abc import Mapping

from fedsweep.config import RunConfig
from fedsweep.redaction import redact
from fedsweep.tracking import describe
from fedsweep.tracking.describe import Told
from fedsweep.tracking.past import PastRun
from fedsweep.tracking.runs import SweepRun, TrialRun
from fedsweep.tracking.session import Session


class Tracker(Session):
    """The driver's one way to MLflow.

    ::

        with Tracker(cfg.tracking) as tracker:
            sweep = tracker.start_sweep(...)
            trial = sweep.start_trial(...)  # or tracker.start_trial(...) for a trial on its own
            trial.started(first)
            trial.round(record)
            trial.finish(result)
            sweep.finish(...)
    """

    def start_sweep(
        self,
        name: str,
        key: str,
        description: str = "",
        params: Mapping[str, str] | None = None,
        command: str = "",
        past: PastRun | None = None,
        trials: Mapping[str, Mapping[str, str]] | None = None,
        search: Mapping[str, str] | None = None,
    ) -> SweepRun:
        """Open the parent run of a sweep, or go on with a past one.

        ``params`` are its axes by full key, each with its values in one text, ``trials`` the values
        of each trial by trial key, in the grid's order; ``command`` runs it; ``search`` is what is
        told of a search, by name.
        """
        tags = describe.sweep_tags(name, key, description, command)
        tags |= {f"search.{name}": redact(told) for name, told in (search or {}).items()}
        return SweepRun(self, name, dict(params or {}), tags, trials or {}, past, bool(search))

    def start_trial(
        self,
        trial: RunConfig | Told,
        axes: Mapping[str, str] | None = None,
        command: str = "",
        parent: SweepRun | None = None,
        past: PastRun | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrialRun:
        """Open the run of one trial, or go on with a past one;
        ``axes`` is its place, by full key, ``tags`` what else it is to be found by.
        """
        return TrialRun(self, trial, dict(axes or {}), command, parent, past, tags or {})
