"""Whatever K-means and FL+HC can be told is accepted or refused, by both doors, in one line."""

from itertools import product
from typing import Any

import pytest

from fedsweep.errors import ConfigError
from fedsweep.strategies import build_strategy, settings_of

REPRESENTATIONS = ("updates", "weights", "last_layer", "losses", "data")
DISTANCES = ("cosine", "euclidean", "manhattan")
RULES = ("given", "silhouette", "gap", "davies_bouldin")
COMMON: dict[str, tuple[Any, ...]] = {
    "representation": REPRESENTATIONS, "distance": DISTANCES, "choose_k": RULES,
    "gate": (0.0, 0.05),
}  # fmt: skip
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "kmeans": {**COMMON, "recluster_every": (0, 2), "stable_after": (0, 2), "sketch": (0, 64)},
    "flhc": {
        **COMMON,
        "linkage": ("average", "complete", "single", "ward"),
        "threshold": (None, 0.5),
    },
}


def _allowed(name: str, s: dict[str, Any]) -> bool:
    """Return what the pages say of representations and distances.

    Angles and sketches are of updates, K-means has no L1, and L1 has no Euclidean part.
    """
    update = s["representation"] in ("updates", "last_layer")
    if s["distance"] == "cosine" and not update:
        return False
    if name == "kmeans":
        return s["distance"] != "manhattan" and (update or not s["sketch"])
    euclidean = (
        s["linkage"] == "ward" or s["gate"] or (s["threshold"] is None and s["choose_k"] != "given")
    )
    return s["representation"] not in ("losses", "data") and not (
        s["distance"] == "manhattan" and euclidean
    )


@pytest.mark.parametrize("name", AXES)
def test_each_combination_is_accepted_or_refused_in_one_line(name: str) -> None:
    for values in product(*AXES[name].values()):
        settings = dict(zip(AXES[name], values, strict=True))
        config = settings_of(name=name, **settings)
        refusals: list[str] = []
        for door in (
            lambda config=config: config.check(),
            lambda config=config: build_strategy(name, config.canonical(), seed=0, num_clients=8),
        ):
            try:
                door()
            except (ConfigError, ValueError) as error:
                refusals.append(str(error))
        assert len(refusals) == (0 if _allowed(name, settings) else 2), (settings, refusals)
        assert all("\n" not in text and "set strategy." in text for text in refusals), refusals
