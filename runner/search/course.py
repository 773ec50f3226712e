"""The course of one search: what it asks to be run, and what it makes of the answers.

A search is a sequence of decisions. Each is a pure function of the words, the seed and the values
of earlier runs, by the numbers of their proposals: never of a clock, of who came first, or of how
many trials run at once. So a search that is begun again asks for the same runs, most of which are
there already, and goes on as if nothing had happened; nothing of it has to be stored.

Sources: generations and rungs are synchronous successive halving (Jamieson and Talwalkar 2016,
arXiv:1502.07943) on means over seeds; the finalists' race is that of Maron and Moore 1994 and
F-race (Birattari et al. 2002), by a paired t-test with Holm's correction.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean

from fedsweep.report.stats import p_different, rejected
from fedsweep.search.proposer import Proposal, Proposer
from fedsweep.search.settings import CLIENT_ROUNDS, SearchConfig
from fedsweep.search.space import Range, Value
from fedsweep.seeding import derive_seed

MOST = 10_000
"""Most generations of a search."""


@dataclass(frozen=True)
class Ask:
    """A run that a search asks for.

    Parameters
    ----------
    proposal : int
        Whose.
    seed : int
        Of the trial: its split and its first model.
    rounds : int
        So many.
    before : int
        Rounds of the same trial that were run for the rung before: it goes on from there.
    """

    proposal: int
    seed: int
    rounds: int
    before: int = 0


@dataclass(frozen=True)
class Heard:
    """What became of a run.

    Parameters
    ----------
    score : float
        More is better; -inf where it failed or diverged.
    cost : float
        What all of its rounds cost, in the budget's unit.
    """

    score: float
    cost: float


FAILED = Heard(-inf, 0.0)
"""A run that there can't be: its proposal's values do not go together."""


@dataclass
class Tried:
    """A proposal and what is known of it.

    Parameters
    ----------
    proposal : Proposal
        Its number and values.
    generation : int
        When it was made.
    scores : dict
        Rounds -> seed -> score.
    complete : bool
        Whether it ran all rounds; else it stopped at a rung.
    """

    proposal: Proposal
    generation: int
    scores: dict[int, dict[int, float]] = field(default_factory=dict)
    complete: bool = False

    @property
    def number(self) -> int:
        """Of the proposal."""
        return self.proposal.number

    @property
    def rounds(self) -> int:
        """How far it came; 0 where nothing is known yet."""
        return max(self.scores, default=0)

    def mean(self, rounds: int, seeds: Sequence[int] | None = None) -> float:
        """Return its mean score after so many rounds; -inf where a seed failed or diverged."""
        at = self.scores[rounds]
        values = [at[seed] for seed in (at if seeds is None else seeds)]
        return fmean(values) if all(map(isfinite, values)) else -inf


class Course:
    """One search, as a generator of what it asks for.

    ::

        course = Course(config, space, rounds=20, trained=10, default={...}, path=("fedavg",))
        steps = course.steps()
        asks = next(steps)
        while True:
            asks = steps.send({ask: run(course.values(ask.proposal), ask) for ask in asks})
        # StopIteration: course.winner

    Parameters
    ----------
    config : SearchConfig
        Budget, replicates, rungs, who proposes.
    space : mapping
        Full key -> range.
    rounds : int
        Of a whole trial.
    trained : int
        Clients that train in a round.
    default : mapping
        The values that the settings have without a search.
    path : sequence of str
        What the search is of: two of one path and seed propose the same.
    repeat : int
        Which of several searches of the same.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: Mapping[str, Range],
        rounds: int,
        trained: int,
        default: Mapping[str, Value],
        path: Sequence[str] = (),
        repeat: int = 0,
    ) -> None:
        self.config, self.space, self.default, self.repeat = config, space, default, repeat
        self.seeds = config.seeds(repeat)
        self.rungs = config.rungs(rounds)
        self.tried: list[Tried] = []
        self.spent = 0.0
        self.rounds_trained = 0.0  # trainings of a client behind what was spent
        self.winner: Tried | None = None
        self.told = ""  # why it ended
        self._trained = trained
        self._costs: dict[tuple[int, int, int], float] = {}
        inside = bool(space) and all(of.has(default.get(key)) for key, of in space.items())
        self._proposer = Proposer(
            space,
            config.sampler,
            derive_seed(config.seed, "search", *path, repeat),
            config.generation,
            default if inside else None,
            config.grid_points,
        )

    def values(self, number: int) -> Mapping[str, Value]:
        """Return the values of a proposal."""
        return self.tried[number].proposal.values

    def steps(self) -> Generator[list[Ask], Mapping[Ask, Heard], None]:
        """Yield what is to be run next, and take what became of all of it."""
        if self.space:
            yield from self._explore()
            yield from self._race()

    def _explore(self) -> Generator[list[Ask], Mapping[Ask, Heard], None]:
        """Run generation after generation, as long as the budget lasts."""
        whole = self.config.budget * (1 - self.config.race)
        for number in range(MOST):
            size = self._affordable(whole - self.spent)
            asked = self._proposer.ask(size) if size else []
            if not asked:
                self.told = "its budget is used" if not size else "its grid is"
                return
            born = [Tried(proposal, number) for proposal in asked]
            self.tried += born
            yield from self._halve(born)
            for one in born:
                scores = [(rounds, one.mean(rounds)) for rounds in sorted(one.scores)]
                self._proposer.tell(one.proposal, scores, one.complete)

    def _halve(self, born: Sequence[Tried]) -> Generator[list[Ask], Mapping[Ask, Heard], None]:
        """Run a generation; at each rung the best go on, by their means over the seeds."""
        alive, before = [*born], 0
        seeds = self.seeds[: self.config.replicates]
        for rounds in self.rungs:
            yield from self._run(alive, seeds, rounds, before)
            if rounds == self.rungs[-1]:
                for one in alive:
                    one.complete = True
                return
            best = sorted(alive, key=lambda one: (-one.mean(rounds), one.number))
            kept = best[: max(1, len(alive) // self.config.factor)]
            alive = [one for one in kept if isfinite(one.mean(rounds))]
            before = rounds
            if not alive:
                return

    def _race(self) -> Generator[list[Ask], Mapping[Ask, Heard], None]:
        """Add replicates while the best proposals can't be told apart; then choose."""
        rounds = self.rungs[-1]
        whole = [one for one in self.tried if one.complete and isfinite(one.mean(rounds))]
        if not whole:
            self.told += ", and none of its proposals ended with a finite score"
            return
        best = sorted(whole, key=lambda one: (-one.mean(rounds), one.number))
        left = best[: self.config.finalists]
        for count in range(self.config.replicates, self.config.most_replicates):
            left = undecided(left, rounds, self.seeds[:count])
            if len(left) < 2 or self._cost(len(left), 1, rounds) > self.config.budget - self.spent:
                break
            yield from self._run(left, [self.seeds[count]], rounds, 0)
            left = [one for one in left if isfinite(one.mean(rounds))] or left[:1]
        self.winner = min(left, key=lambda one: (-one.mean(rounds), one.number))

    def _run(
        self, of: Sequence[Tried], seeds: Sequence[int], rounds: int, before: int
    ) -> Generator[list[Ask], Mapping[Ask, Heard], None]:
        """Have proposals run on seeds, and take down their scores and what they cost."""
        asks = [Ask(one.number, seed, rounds, before) for one in of for seed in seeds]
        heard = yield asks
        for ask in asks:
            found = heard[ask]
            self.tried[ask.proposal].scores.setdefault(rounds, {})[ask.seed] = found.score
            clients = float(self._trained * (rounds - before))
            self.rounds_trained += clients
            if self.config.unit == CLIENT_ROUNDS:
                self.spent += clients
            else:
                place = ask.proposal, ask.seed, before
                self.spent += max(0.0, found.cost - self._costs.get(place, 0.0))
                self._costs[ask.proposal, ask.seed, rounds] = found.cost

    def _affordable(self, left: float) -> int:
        """Return how many proposals the next generation has."""
        if self.config.unit != CLIENT_ROUNDS and not self.tried:
            return 1  # which tells what one costs
        if self.tried and not self.spent:  # nothing that ran told what it costs
            return 0
        sizes = range(self.config.generation, 0, -1)
        return next((size for size in sizes if self._generation(size) <= left), 0)

    def _generation(self, size: int) -> float:
        """Return what a generation costs at most."""
        total, before = 0.0, 0
        for rounds in self.rungs:
            total += self._cost(size, self.config.replicates, rounds - before)
            size, before = max(1, size // self.config.factor), rounds
        return total

    def _cost(self, proposals: int, replicates: int, rounds: int) -> float:
        """Return what so much costs: for a unit that is measured, as it cost so far."""
        clients = float(proposals * replicates * rounds * self._trained)
        known = self.config.unit == CLIENT_ROUNDS or not self.rounds_trained
        return clients if known else clients * self.spent / self.rounds_trained


def undecided(of: Sequence[Tried], rounds: int, seeds: Sequence[int]) -> list[Tried]:
    """Return the best proposal, and those that can't be told from it: by a paired test over seeds.

    The test is Student's, two-sided, over the seeds that all have (three at least: with fewer
    nobody is told apart), corrected for the number of proposals by Holm.
    """
    best = min(of, key=lambda one: (-one.mean(rounds, seeds), one.number))
    others = [one for one in of if one is not best]

    def scores(one: Tried) -> list[float]:
        return [one.scores[rounds][seed] for seed in seeds]

    worse = rejected([p_different(scores(best), scores(one), "t") for one in others])
    return [best, *(one for one, lost in zip(others, worse, strict=True) if not lost)]
