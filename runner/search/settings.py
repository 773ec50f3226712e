"""What a search is told: spaces, budget, who proposes, by which metric, on how many seeds."""

from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from fedsweep.catalog import CATALOG, Metric, Need
from fedsweep.errors import unknown
from fedsweep.search.space import Range, parse
from fedsweep.strategies.ranges import LONGEST, METRIC, ROUNDS
from fedsweep.strategies.settings import Settings

AUTO = "auto"
"""A space that is made of the settings' own ranges."""

CLIENT_ROUNDS: Literal["client_rounds"] = "client_rounds"
"""The unit of a budget that is known before a trial has run: one is the training of one client."""

Unit = Literal["client_rounds", "virtual_s", "mb_total", "joules"]
"""What a budget counts: trainings of a client, or what a trial's end tells by this name."""


class SearchConfig(Settings):
    """A search: each method of the grid is tuned on its own, all with the same budget."""

    space: dict[str, Any] = Field(
        default_factory=dict,
        description="setting -> its range, METHOD/setting -> that of one method alone, or auto",
    )
    auto: bool = Field(False, description="add ranges of the settings that nobody gave one for")
    budget: float = Field(
        gt=0, le=METRIC, description="what each method may spend, in each problem of the grid"
    )
    unit: Unit = Field(CLIENT_ROUNDS, description="what the budget counts")
    sampler: Literal["tpe", "random", "grid", "cmaes"] = Field("tpe", description="who proposes")
    metric: str = Field("client_acc", description="held-out metric by which proposals compete")
    generation: int = Field(
        6, ge=1, le=1000, description="proposals that are made without knowing of each other"
    )
    replicates: int = Field(
        2, ge=1, le=1000, description="seeds, of split and first model, that each proposal has"
    )
    most_replicates: int = Field(
        5, ge=1, le=1000, description="seeds at most, while finalists can't be told apart"
    )
    finalists: int = Field(
        4, ge=1, le=1000, description="best proposals that more replicates may decide between"
    )
    race: float = Field(0.25, ge=0, lt=1, description="share of the budget kept for the finalists")
    min_rounds: int = Field(
        0,
        ge=0,
        le=ROUNDS,
        description="round of the first rung, at which a generation's losers stop; 0: none stop",
    )
    factor: int = Field(3, ge=2, le=ROUNDS, description="one in so many goes on from a rung")
    repeats: int = Field(1, ge=1, le=1000, description="searches, to see how much is luck")
    first_seed: int = Field(
        1000, ge=0, le=LONGEST, description="first seed of the replicates; the next ones follow"
    )
    seed: int = Field(0, ge=0, le=LONGEST, description="of the sampler")
    grid_points: int = Field(5, ge=2, le=1000, description="points of a range under sampler=grid")

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_space(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("space") == AUTO:
            return {**values, "space": {}, "auto": True}
        return values

    @field_validator("unit", mode="before")
    @classmethod
    def _is_no_epsilon(cls, unit: Any) -> Any:
        # Nothing composes to a theorem here: scores are told as they are, and proposals that are
        # compared on one seed share its draws of clients and noise (docs/tuning.md).
        if unit == "epsilon":
            raise ValueError(
                "a search has none to spend: it chooses by scores that clients tell without noise, "
                "and its runs share their seeds' noise; take one of " + ", ".join(get_args(Unit))
            )
        return unit

    @field_validator("space")
    @classmethod
    def _are_ranges(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key, text in given.items():
            parse(key, text)
        return given

    @field_validator("metric")
    @classmethod
    def _is_held_out(cls, name: str) -> str:
        names = {final: final for final in CATALOG.finals}
        names |= {metric.key: final for final, metric in CATALOG.finals.items()}
        known = [final for final, metric in CATALOG.finals.items() if _fits(metric)]
        if name not in names:
            raise ValueError(unknown("metric", name, known))
        if names[name] not in known:
            raise ValueError(
                "a search is decided on what clients hold out, and nothing else; take one of "
                + ", ".join(known)
            )
        return names[name]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.space and not self.auto:
            raise ValueError(
                "there is nothing to search; give search.space=auto, or a range, as "
                "search.space.training.lr=loguniform:1e-3:1"
            )
        if self.most_replicates < self.replicates:
            raise ValueError(
                f"search.most_replicates={self.most_replicates} is less than "
                f"search.replicates={self.replicates}; raise it"
            )
        return self

    @property
    def sign(self) -> float:
        """Times the metric, more is better."""
        return CATALOG.final(self.metric).sign

    @property
    def ranges(self) -> dict[str, Range]:
        """The ranges that are given, by key."""
        return {key: parse(key, text) for key, text in self.space.items()}

    def rungs(self, rounds: int) -> tuple[int, ...]:
        """Return the rounds after which a generation is compared; the last ones are a trial's."""
        found = [self.min_rounds] if 0 < self.min_rounds < rounds else []
        while found and (later := found[-1] * self.factor) < rounds:
            found.append(later)
        return *found, rounds

    def seeds(self, repeat: int = 0) -> tuple[int, ...]:
        """Return the seeds of a search's replicates, in order; each repeat has its own."""
        first = self.first_seed + repeat * self.most_replicates
        return tuple(range(first, first + self.most_replicates))


def _fits(metric: Metric) -> bool:
    """Return whether a search may be decided by a metric: a held-out share, more being better."""
    return Need.HELD_OUT in metric.needs and metric.unit == "%" and metric.better == "higher"
