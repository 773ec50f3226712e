"""MLflow, as the runner sees it: a tracker opens sweeps and trials, a thread writes what they say.

This package is the only importer of mlflow, and it does so late: ``--help`` need not wait for it.
"""

from fedsweep.redaction import redact
from fedsweep.tracking.runs import SweepRun, TrialRun
from fedsweep.tracking.session import flush
from fedsweep.tracking.tracker import Tracker

__all__ = ["SweepRun", "Tracker", "TrialRun", "flush", "redact"]
