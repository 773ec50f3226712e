"""What tables and figures are made of: the trials of a sweep."""

from dataclasses import dataclass

import pandas as pd

from fedsweep.config.section import short_names


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, in its order. Settings and numbers are two tables: none hides another.

    Parameters
    ----------
    axes : pd.DataFrame
        Full key -> value, a row per trial; missing where an axis does not apply. Numbers are
        numbers, so that 10 comes after 2.
    metrics : pd.DataFrame
        Final metrics, a row per trial, nan where it has none.
    finished : pd.Series
        Whether the trial finished.
    """

    axes: pd.DataFrame
    metrics: pd.DataFrame
    finished: pd.Series

    @property
    def names(self) -> dict[str, str]:
        """What the axes are called where people read them."""
        return short_names(map(str, self.axes))

    def frame(self) -> pd.DataFrame:
        """Return both tables side by side."""
        return pd.concat([self.axes, self.metrics], axis=1)
