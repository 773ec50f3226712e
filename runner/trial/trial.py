"""One trial from start to end, in a straight line: start reading here."""

import hashlib
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from fedsweep.catalog import CATALOG
from fedsweep.config import ModelConfig, PrivacyConfig, RunConfig, TrainingConfig, TrialConfig
from fedsweep.config.trial import PARTS
from fedsweep.data.adversary import NOBODY, Adversary
from fedsweep.data.federated import FederatedData
from fedsweep.data.scaling import Scaling
from fedsweep.data.shift import ClientGroups
from fedsweep.data.sources import ImageData
from fedsweep.engine.chunks import TOGETHER
from fedsweep.engine.executors import Host
from fedsweep.engine.grid import EngineGrid, inline_grid, ray_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.wire import count_bytes
from fedsweep.errors import TrialError
from fedsweep.pace.cohorts import PoissonSampled
from fedsweep.pace.downlink import DownLink
from fedsweep.pace.policies import Policies, Underway
from fedsweep.pace.schedule import Scene
from fedsweep.parts.registry import Origin
from fedsweep.records import RoundRecord, TrialPaused, TrialResult, TrialStarted
from fedsweep.scenario.compression import Compressor
from fedsweep.scenario.masking import Masking
from fedsweep.seeding import derive_seed
from fedsweep.strategies import Layout, build_strategy, with_defence, with_layout, wrap_privacy
from fedsweep.strategies.arrays import records_of
from fedsweep.strategies.base import (
    Clustered,
    ModelTraits,
    State,
    accused_by,
    model_users,
    models_of,
)
from fedsweep.strategies.state import Unkept, load_strategy_state, strategy_state
from fedsweep.trial.attacked import Attacked
from fedsweep.trial.checkpoint import Checkpoint, CheckpointStore
from fedsweep.trial.evaluation import TestScores, ask_scores
from fedsweep.trial.metrics import Ledger, initial_record, own_test_metrics, round_record
from fedsweep.trial.opening import Opened
from fedsweep.trial.privacy import check_state, noise_of, said_of_privacy, spending_of
from fedsweep.trial.rounds import Loop, evaluate_round, run_rounds
from fedsweep.trial.stop import StopRules
from fedsweep.trial.summed import Announced, Summed
from fedsweep.trial.virtual import VirtualTime, timeless_scene

if TYPE_CHECKING:
    from ray import ObjectRef

CLIENT_APP = "fedsweep.client.app"
"""Module of the ClientApp of trials: hosts import it, a driver need not."""

TRAINING_QUERIES = ("query.sketch", "query.root")
"""Queries for which a client trains."""

TrialEvent = TrialStarted | RoundRecord | TrialPaused | TrialResult


@dataclass(frozen=True)
class Split:
    """Who holds which rows, apart from the images, which are in the object store once per node."""

    train_rows: Sequence[np.ndarray]
    eval_rows: Sequence[np.ndarray]
    shift: ClientGroups
    adversary: Adversary = NOBODY
    scaling: Scaling | None = None

    def on(self, images: ImageData) -> FederatedData:
        """Join the split with the images it was made for."""
        held = self.train_rows, self.eval_rows
        return FederatedData(images, *held, self.shift, self.adversary, self.scaling)


def run_trial(
    config: RunConfig,
    images: ImageData,
    split: Split,
    hosts: list[Host] | None = None,
    images_ref: "ObjectRef | None" = None,
    split_ref: "ObjectRef | None" = None,
    checkpoints: CheckpointStore | None = None,
    rungs: Sequence[int] = (),
    lost: str = "",
) -> Generator[TrialEvent, None, None]:
    """Run a trial and yield what happens: its start, round 0, each round, its result.

    With a checkpoint it goes on from there: it yields the records of the rounds behind it again,
    then new ones.

    Parameters
    ----------
    config : RunConfig
        What to run.
    images, split : ImageData, Split
        The data. On Ray their references go to the hosts in their place.
    hosts : list of Host, optional
        Client hosts; without them every client runs in this process.
    checkpoints : CheckpointStore, optional
        Where to go on from, and where to keep what it needs. A round's checkpoint is written
        before it is yielded.
    rungs : sequence of int
        Rounds at which it waits: it ends paused after the first that is not behind its checkpoint.
    lost : str
        Why it goes on no longer from there: it ends with a result instead.

    Raises
    ------
    TrialError
        Too few clients replied, or an evaluation failed.
    CheckpointError
        A checkpoint of something else, or one that can't be written.
    """
    begun = time.perf_counter()
    data = split.on(images)
    saved = checkpoints.load() if checkpoints else None
    yield TrialStarted(config.key, data.summary(config), saved.round + 1 if saved else 0)
    trial = _Trial(
        config, data, make_grid(config, data, hosts, images_ref or images, split_ref or split)
    )

    # What is known: the rounds behind the checkpoint, or the initial model.
    known = trial.go_on(saved) if saved else trial.begin()
    for record in known:
        trial.rules.update(record, trial.loop.evaluates(record.round))
        yield record
    earlier_s = trial.rules.seconds

    # Rounds, up to the last, a rung or a rule that ends it.
    rung = next((number for number in rungs if number >= max(record.round, 1)), None)
    unsaved = [] if saved else [record]
    if not trial.rules.reason and record.round != rung:
        first = record.round + 1
        for record in trial.rounds(first):
            if checkpoints:
                unsaved.append(record)
            ends = bool(trial.rules.reason) or record.round in (config.rounds, rung)
            if checkpoints and (ends or record.round % config.checkpoint.every == 0):
                checkpoints.save(record.round, trial.state(), unsaved)
                unsaved = []
            yield record
            if ends:
                break

    # Its end, or a pause.
    at_rung = record.round == rung and not trial.rules.reason
    if at_rung and not lost:
        yield TrialPaused(record.round)
        return
    result = trial.result(record, lost if at_rung else trial.rules.reason)
    wall_s = earlier_s + time.perf_counter() - begun
    yield replace(result, summary={**result.summary, "wall_s": wall_s})


class _Trial:
    """A trial between two rounds: what it is made of, and where it stands."""

    def __init__(self, config: RunConfig, data: FederatedData, grid: EngineGrid) -> None:
        self.config, self.data, self.grid = config, data, grid
        self._initial, self._layout = initial_model(grid)
        check_state(config, self._layout, self._initial)
        self.strategy = make_strategy(config, data.shift, self._layout)
        self._unkept = Unkept(self.strategy)
        self._clustered = self.strategy if isinstance(self.strategy, Clustered) else None
        self._has = models_of(self.strategy)
        self._virtual = (
            VirtualTime(config, grid, data.num_examples(), self.strategy)
            if config.devices.timed
            else None
        )
        scene = self._virtual.scene(config) if self._virtual else timeless_scene(config)
        self._central = _CentralTest(config, grid, data, self._clustered, self._has)
        self._noise = noise_of(config, data.num_examples())
        self._summed: Summed | None = None  # where masks hide what clients send
        self.loop = Loop(
            num_rounds=config.rounds,
            seed=config.seed,
            train_config=ConfigRecord(
                {
                    **train_config(config.training),
                    **private_steps(config.privacy, self._noise),
                }
            ),
            evaluate_every=config.evaluate_every,
            timeout=config.resources.round_timeout_s,
            min_fit_fraction=config.strategy.min_fit_fraction,
            online=config.online,
            evaluate_config=ConfigRecord({"by-class": True} if config.asked_metrics else {}),
            held_out=data.holds_out and config.privacy.tells,
            evaluate_personal=config.evaluate_personal,
            policies=self._policies(scene),
            settle=self._virtual.settle if self._virtual else None,
            attackers=data.adversary.nodes,
            aims=data.adversary.aims,
        )
        self.rules = StopRules(config.stop)
        self._spending = spending_of(config, data.num_examples(), self._noise)
        self._arrays, self._ledger, self._underway = self._initial, Ledger(), Underway()
        self._scores: TestScores | None = None  # of the last round that ran here

    def _policies(self, scene: Scene) -> Policies:
        """Return what a round is, whose replies may be attackers', or have to be opened."""
        policies, compressor = self.config.schedule.policies(scene), compressor_of(self.config)
        if self.config.sampling == "poisson":
            cohort = PoissonSampled(self.config.strategy.fraction_train)
            policies = replace(policies, cohort=cohort)
        policies = replace(policies, ahead=policies.ahead and mixes_rounds(self.config))
        delivery, adversary = policies.delivery, self.data.adversary
        if adversary.forges:
            delivery = Attacked(delivery, adversary, self._layout)
        if compressor is not None:
            down = None
            if compressor.down:
                seed, workload = derive_seed(self.config.seed, "compression"), policies.workload
                down = DownLink(compressor, self._layout, count_bytes, seed, workload)
                # Their messages are made when they are sent.
                policies = replace(policies, workload=down, ahead=False)
            delivery = Opened(delivery, compressor, self._layout, down)
        masking = masking_of(self.config, self.data)
        if masking is not None:
            delivery = self._summed = Summed(delivery, masking, self._layout)
            policies = replace(policies, workload=Announced(policies.workload))
        return replace(policies, delivery=delivery)

    def begin(self) -> tuple[RoundRecord, ...]:
        """Test the initial model; return round 0."""
        scores = self._central.score(0, self._arrays)
        first = initial_record(scores, self.data.label_counts(), self.config.asked_metrics)
        privacy = said_of_privacy(self.config, self._layout, self._noise)
        said = (*self.data.adversary.told(), *privacy, *self.config.told, *self.data.told())
        return (replace(first, time_s=time.time(), events=said),)

    def go_on(self, saved: Checkpoint) -> tuple[RoundRecord, ...]:
        """Put back what :meth:`state` returned; return the records of the rounds until then."""
        state = saved.state
        load_strategy_state(self.strategy, state["strategy"])
        self.grid.states = {int(node_id): kept for node_id, kept in state["clients"].items()}
        self._arrays, self._ledger = state["arrays"], Ledger(**state["ledger"])
        self._underway.load_state_dict(state["underway"])
        if self._virtual:
            self._virtual.load_state_dict(state["virtual"])
        self.grid.load_early_state(state.get("early", []), self._underway.messages)
        if "policies" in state:
            self.loop.policies.load_state_dict(state["policies"])
        self._spending.go_on(saved.records)
        return saved.records

    def state(self) -> State:
        """Return all that the next round depends on, besides the configuration."""
        early = self.grid.early_state(self.loop.timeout)
        return {
            "arrays": self._arrays,
            "strategy": strategy_state(self.strategy),
            "clients": {str(node_id): state for node_id, state in self.grid.states.items()},
            "ledger": vars(self._ledger),
            "underway": self._underway.state_dict(),
            "policies": self.loop.policies.state_dict(),
            **({"early": early} if early else {}),
            **({"virtual": self._virtual.state_dict()} if self._virtual else {}),
        }

    def rounds(self, first_round: int) -> Iterator[RoundRecord]:
        """Run rounds and yield their records; the rules have seen each."""
        clock = time.perf_counter()
        for done in run_rounds(
            self.strategy,
            self.grid,
            self._arrays,
            self.loop,
            first_round,
            self._central.ask,
            self._underway,
        ):
            self._arrays, self._scores = done.arrays, done.scores
            groups = self.data.groups_in(self.data.phase(done.number))
            now = time.perf_counter()
            record = round_record(
                done,
                groups,
                self._clustered,
                done.scores,
                self._ledger,
                now - clock,
                self._central.honest(done.number),
                self.config.asked_metrics,
                attackers=self.data.adversary.nodes,
                accused=accused_by(self.strategy),
            )
            clock = now
            record = self._spending.settled(record)
            if self._summed is not None:
                record = self._summed.settled(record)
            stopped = self.rules.update(record, self.loop.evaluates(done.number))
            lost = [
                f"strategy={self.config.strategy.name} changed its {name}, which is no plain data: "
                "a trial that is interrupted goes on without it; keep it in lists and dicts with "
                "keys of text, or write state_dict and load_state_dict"
                for name in self._unkept.found()
            ]
            events = (*record.events, *lost, *[f"stopped: {stopped}"] * bool(stopped))
            yield replace(record, events=events, time_s=time.time())

    def result(self, last: RoundRecord, stopped: str) -> TrialResult:
        """Return what came out after the last round, and why it was the last."""
        scores = self._scores
        if scores is None or last.round < self.config.rounds:  # ended early, or by its checkpoint
            scores = self._final_scores(last)
        models = _models(self._arrays, self._clustered, self._has)
        there = self._central.honest(last.round)
        return _result(self.config, self.data, models, last, scores, stopped, there)

    def _final_scores(self, last: RoundRecord) -> TestScores | None:
        """Score the models that there are now, as the last round does."""
        scores = self._central.score(last.round, self._arrays, last=True)
        if self._has.personal_models and "3_clients/test_acc" not in last.metrics:
            self.grid.online = self.config.online(last.round)
            _, own = evaluate_round(
                self.strategy, self.grid, self._arrays, self.loop, last.round, personal=True
            )
            scores = (scores or TestScores()).with_alone(own) if own else scores
            self.grid.drain()
        return scores


def make_strategy(config: TrialConfig, shift: ClientGroups, layout: Layout) -> Strategy:
    """Return a trial's strategy, with a defence or a privacy wrapper where the config asks for one.

    It knows what the arrays of its model are, or sees the trained ones alone.
    """

    def by_node(groups: np.ndarray) -> dict[int, int]:
        return {client + 1: int(group) for client, group in enumerate(groups)}

    strategy = build_strategy(
        config.strategy.name,
        config.strategy.canonical(),
        seed=derive_seed(config.seed, "strategy"),
        num_clients=config.num_clients,
        client_learning_rate=config.training.lr,
        groups=by_node(shift.groups),
        drifted=by_node(shift.drifted),
        drift_round=shift.drift_round,
    )
    if config.defence.defends:
        strategy = with_defence(strategy, config.defence.defend)
    rate = config.strategy.fraction_train if config.sampling == "poisson" else None
    return with_layout(wrap_privacy(strategy, config.privacy.canonical(), rate), layout)


def client_app(
    images: ImageData,
    split: Split,
    model: ModelConfig,
    seed: int,
    threads: int,
    privacy: PrivacyConfig,
    engine: Any,
    compressor: Compressor | None,
    masking: Masking | None,
    origins: Mapping[str, Origin],
) -> ClientApp:
    """Build the built-in ClientApp on a host, with the mods that privacy asks for."""
    for part, origin in origins.items():
        PARTS[part].receive(origin)
    from fedsweep.client.app import make_client_app
    from fedsweep.client.clipping import clipping_mod
    from fedsweep.client.silence import silence_mod

    mods = [] if privacy.tells else [silence_mod]
    mods += [clipping_mod] if privacy.name.endswith("_client") else []
    data = split.on(images)
    return make_client_app(data, model, seed, "auto", threads, mods, engine, compressor, masking)


def make_grid(
    config: RunConfig, data: FederatedData, hosts: list[Host] | None, images: Any, split: Any
) -> EngineGrid:
    """Return the grid that runs a trial's clients: on hosts, or in this process."""
    kwargs = {
        "images": images,
        "split": split,
        "model": config.model,
        "seed": config.seed,
        "threads": config.training.threads,
        "privacy": config.privacy,
        "engine": config.training.engine,
        "compressor": compressor_of(config),
        "masking": masking_of(config, data),
        "origins": config.origins,
    }
    spec = AppSpec(config.key, client_app, kwargs, config.num_clients, {})
    examples = data.num_examples()

    def cost(node_id: int, message_type: str) -> float:
        trains = not message_type.startswith("query") or message_type in TRAINING_QUERIES
        return 1.0 + float(examples[node_id - 1]) if trains else 1.0

    size = config.resources.chunk_size
    chunk_size = size if isinstance(size, int) else None
    together = 1 if config.training.engine == "sequential" else TOGETHER
    alike = but_for_its_round if mixes_rounds(config) else None
    if hosts:
        return ray_grid(spec, hosts, cost, chunk_size, together, alike)
    return inline_grid(spec, cost, chunk_size, together, alike)


def mixes_rounds(config: TrialConfig) -> bool:
    """Return whether clients that were asked in several rounds may train in one chunk, and early.

    What somebody's own clients do may go by the round, or keep something in an evaluation.
    """
    return config.schedule.stale and config.strategy.part_origin is None


def but_for_its_round(content: RecordDict) -> Hashable:
    """Return what a content asks, whichever model it asks it of: such tasks train together.

    Where the learning rate decays, those of other rounds don't.
    """
    config = dict(records_of(content, ConfigRecord).get("config", ConfigRecord()))
    if config.get("lr-decay", 1.0) == 1:
        config.pop("server-round", None)
    return repr(sorted(config.items()))


def compressor_of(config: TrialConfig) -> Compressor | None:
    """Return what compresses the clients' updates, if anything does."""
    return config.compression if isinstance(config.compression, Compressor) else None


def masking_of(config: TrialConfig, data: FederatedData) -> Masking | None:
    """Return how clients mask what they send, if they do.

    The most that one weighs is the most examples that one has; where they tell no number, 1.
    """
    if not config.secure_aggregation:
        return None
    heaviest = float(data.num_examples().max()) if config.privacy.tells else 1.0
    return config.secagg.masking(heaviest, config.seed)


def initial_model(grid: EngineGrid) -> tuple[ArrayRecord, Layout]:
    """Ask a host for the seeded initial model and what its arrays are.

    So a trial process does without torch.

    Raises
    ------
    TrialError
        The network can't be built, or can't be made as new for each client.
    """
    [reply] = grid.send_and_receive([Message(RecordDict(), 1, "query.init")])
    if reply.has_error():
        raise TrialError(
            f"the model can't be built: {str(reply.error.reason).removeprefix('ValueError: ')}"
        )
    arrays = reply.content.array_records["arrays"]
    return arrays, Layout.from_config(reply.content.config_records["layout"])


def train_config(training: TrainingConfig) -> ConfigRecord:
    """Return the hyperparameters that each training message carries."""
    values = training.canonical()
    del values["threads"], values["engine"]
    values["steps"] = values["steps"] or 0
    return ConfigRecord({key.replace("_", "-"): value for key, value in values.items()})


def private_steps(privacy: PrivacyConfig, z: float) -> dict[str, float]:
    """Return what clients are told of their gradients, where these are clipped and noised by z."""
    if not privacy.in_clients:
        return {}
    return {"dp-norm": privacy.clipping_norm, "dp-noise": z}


def weights_sha256(models: Mapping[str, ArrayRecord]) -> str:
    """Return one hash of all models' names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(models):
        for key, array in models[name].items():
            value = array.numpy()
            digest.update(f"{name}/{key}/{value.dtype}/{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _models(
    arrays: ArrayRecord, clustered: Clustered | None, has: ModelTraits
) -> dict[str, ArrayRecord]:
    models = {"global": arrays} if has.has_global_model else {}
    if clustered:
        models |= {f"cluster_{c}": record for c, record in sorted(clustered.cluster_arrays.items())}
    return models


@dataclass(frozen=True)
class _CentralTest:
    """Scores the models of a round on the central test set."""

    config: TrialConfig
    grid: EngineGrid
    data: FederatedData
    clustered: Clustered | None
    has: ModelTraits

    def ask(
        self, number: int, arrays: ArrayRecord, last: bool = False
    ) -> Callable[[], TestScores] | None:
        """Send the models of a round to be scored.

        With confusion matrices where it is the last, or where a metric is asked for. Attackers use
        no model; what they want of the models of others is scored beside.
        """
        models = _models(arrays, self.clustered, self.has)
        there = self.honest(number)
        users: dict[str, Sequence[int]] = {}
        for node, cluster in (model_users(self.clustered) if self.clustered else {}).items():
            if node not in self.data.adversary.nodes:
                cast(list[int], users.setdefault(f"cluster_{cluster}", [])).append(node - 1)
        placed = {client for clients in users.values() for client in clients}
        rest = [client for client in there if client not in placed] if placed else there
        # Personal models are scored by their clients, be these in clusters too.
        own = {} if self.has.personal_models else {**users, "global": rest}
        users["global"] = there
        used = {name: record for name, record in models.items() if users.get(name)}
        if not used:
            return None
        groups = self.data.groups_in(self.data.phase(number))
        confusion = last or number == self.config.rounds or bool(self.config.asked_metrics)
        size = len(self.data.images.test_y)
        ask = partial(ask_scores, self.grid, used, users, groups, size, own=own)
        wait = ask(confusion=confusion)
        if not self.data.adversary.aims:
            return wait
        wait_goal = ask(goal=True)
        return lambda: replace(wait(), goal=wait_goal())

    def honest(self, number: int) -> Sequence[int]:
        """Return the clients that there are in a round, and that are no attackers."""
        there = range(self.config.online(number))
        attackers = self.data.adversary.nodes
        return [client for client in there if client + 1 not in attackers] if attackers else there

    def score(self, number: int, arrays: ArrayRecord, last: bool = False) -> TestScores | None:
        """Return the scores of a round's models; what the grid saw of it is forgotten."""
        wait = self.ask(number, arrays, last)
        scores = wait() if wait else None
        self.grid.drain()
        return scores


def _result(
    config: TrialConfig,
    data: FederatedData,
    models: dict[str, ArrayRecord],
    last: RoundRecord,
    scores: TestScores | None,
    stopped: str,
    there: Sequence[int],
) -> TrialResult:
    own = own_test_metrics(scores, len(there), config.asked_metrics)
    final = {**own, **last.metrics}
    summary = CATALOG.summary(final)
    summary["rounds"] = float(last.round)
    images = data.images
    return TrialResult(
        key=config.key,
        models={name: {k: a.numpy() for k, a in record.items()} for name, record in models.items()},
        weights_sha256=weights_sha256(models),
        summary=summary,
        confusion=scores.confusion() if scores and not images.is_real else None,
        input_shape=images.shape,
        stopped=stopped,
    )
