"""One trial: all its settings, whether they fit together, and its key; and what runs it."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from fedsweep.catalog import CATALOG, Metric, Need
from fedsweep.config.account import Accounted
from fedsweep.config.effects import idle_keys, never_happens
from fedsweep.config.learning import ModelConfig, TrainingConfig
from fedsweep.config.privacy import PrivacyConfig
from fedsweep.config.running import HalvingConfig, SessionConfig, StopConfig
from fedsweep.config.section import OneOf, Section, find_part
from fedsweep.config.secure import SecAggConfig, check_sums, sums_said
from fedsweep.errors import ConfigError
from fedsweep.models import MODELS
from fedsweep.pace.schedule import Schedule
from fedsweep.pace.schedules import SCHEDULES, schedule_of
from fedsweep.parts.code import Code
from fedsweep.parts.family import Family
from fedsweep.parts.registry import Origin, Registry
from fedsweep.scenario.attack import Attack
from fedsweep.scenario.attacks import ATTACKS, attack_of
from fedsweep.scenario.compression import Compression, Compressor
from fedsweep.scenario.compressions import COMPRESSIONS, compression_of
from fedsweep.scenario.dataset import DATASETS
from fedsweep.scenario.defence import Defence
from fedsweep.scenario.defences import DEFENCES, defence_of
from fedsweep.scenario.device import Devices
from fedsweep.scenario.devices import DEVICES, devices_of
from fedsweep.scenario.partition import Partition
from fedsweep.scenario.partitions import PARTITIONS, partition_of
from fedsweep.scenario.shift import Shift
from fedsweep.scenario.shifts import SHIFTS, shift_of
from fedsweep.scenario.task import Task
from fedsweep.scenario.tasks import TASKS, task_of
from fedsweep.scores import SCORES
from fedsweep.strategies.base import ModelTraits, models_of
from fedsweep.strategies.ranges import CLIENTS, LONGEST, ROUNDS
from fedsweep.strategies.registry import STRATEGIES, settings_of
from fedsweep.strategies.selection import ServerRule
from fedsweep.strategies.settings import FedAvgSettings, Setting

LATER: dict[str, Family[Any]] = {
    "attack": ATTACKS,
    "devices": DEVICES,
    "schedule": SCHEDULES,
    "compression": COMPRESSIONS,
    "defence": DEFENCES,
}
"""Sections that are younger than keys of trials: at their defaults they leave these alone."""

PARTS: dict[str, Registry[Any]] = {
    "dataset": DATASETS,
    "partition": PARTITIONS,
    "shift": SHIFTS,
    **LATER,
    "model": MODELS,
    "strategy": STRATEGIES,
}
"""The sections of a trial whose options are parts: found by name, or where they lie."""


class TrialConfig(Section):
    """What defines a trial: everything that decides its numbers."""

    PROBLEM: ClassVar[frozenset[str]] = frozenset({
        "dataset", "partition", "shift", "attack", "devices", "num_clients", "evaluate_every",
        "strategy.fraction_evaluate", "strategy.min_evaluate_nodes", "evaluate_personal", "metrics",
        "experiment", "problem",
    })  # fmt: skip
    """What a trial has to solve, and how that is measured; other settings are ways to solve it.

    ``problem`` is no section of a trial: so begin the axes of a Flower app that its user says make
    a problem (``fedsweep.app.config``).
    """

    dataset: Annotated[Task, OneOf(TASKS)] = Field(
        default_factory=task_of, description="what is learnt from: examples and their targets"
    )
    partition: Annotated[Partition, OneOf(PARTITIONS)] = Field(
        default_factory=partition_of, description="split among the clients"
    )
    shift: Annotated[Shift, OneOf(SHIFTS)] = Field(
        default_factory=shift_of, description="known groups of clients"
    )
    attack: Annotated[Attack, OneOf(ATTACKS)] = Field(
        default_factory=attack_of, description="attackers among the clients"
    )
    devices: Annotated[Devices, OneOf(DEVICES)] = Field(
        default_factory=devices_of, description="simulated devices: a virtual clock"
    )
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Field(
        default_factory=schedule_of, description="when clients are asked, and replies make a model"
    )
    compression: Annotated[Compression, OneOf(COMPRESSIONS)] = Field(
        default_factory=compression_of, description="how the clients' updates are sent"
    )
    defence: Annotated[Defence, OneOf(DEFENCES)] = Field(
        default_factory=defence_of, description="what is done to updates before their mean"
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="network")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="local training")
    strategy: Annotated[FedAvgSettings, OneOf(STRATEGIES)] = Field(
        default_factory=settings_of, description="federated strategy"
    )
    privacy: PrivacyConfig = Field(
        default_factory=PrivacyConfig, description="differential privacy"
    )
    secure_aggregation: bool = Field(
        False, description="the server learns sums of the clients' updates, and none of them"
    )
    secagg: SecAggConfig = Field(
        default_factory=SecAggConfig, description="how clients mask what they send"
    )
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed",
        description=(
            "how a round's clients are drawn: so many of them, or each on its own with probability "
            "strategy.fraction_train (then there may be none)"
        ),
    )
    num_clients: int = Field(
        10,
        ge=1,
        le=CLIENTS,
        description="virtual clients (Flower nodes); 1 under partition=centralized",
    )
    rounds: int = Field(10, ge=1, le=ROUNDS, description="federated rounds")
    evaluate_every: int = Field(
        1,
        ge=1,
        le=ROUNDS,
        description="evaluate every so many rounds, and in the last",
    )
    evaluate_personal: Literal["last", "always"] = Field(
        "last",
        description=(
            "when a client scores a model that it alone has on the central test set: in the last "
            "round, or always when it evaluates (a pass over the test set per client)"
        ),
    )
    metrics: tuple[str, ...] = Field(
        (),
        strict=False,  # a list makes a tuple
        description="metrics beside those of every trial, such as [balanced_acc,macro_f1]",
    )
    seed: int = Field(0, ge=0, le=LONGEST, description="root of every random choice")
    stop: StopConfig = Field(default_factory=StopConfig, description="rules that end a trial early")
    halving: HalvingConfig = Field(
        default_factory=HalvingConfig, description="successive halving over an axis"
    )

    _scores: tuple[Origin, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _centralized_is_one_client(cls, values: Any) -> Any:
        """Let the centralized baseline stand in a grid of federated trials: it has one client."""
        if not isinstance(values, dict) or (given := values.get("partition")) is None:
            return values
        kind = OneOf(PARTITIONS).kind(given)
        one_client = issubclass(kind, Partition) and kind.one_client
        return values | {"num_clients": 1} if one_client else values

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the metrics in one order, each once: neither may make another trial."""
        return tuple(sorted({find_part(SCORES, name) for name in names}))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse what can't work before anything starts."""
        n, s = self.num_clients, self.strategy
        if self.stop.watches:
            self._check_watched("stop", self.stop)
        if self.halving.axis:
            self._check_watched("halving", self.halving)
        if self.halving.axis and self.halving.min_rounds >= self.rounds:
            raise ConfigError(
                f"halving.min_rounds={self.halving.min_rounds} is not less than "
                f"rounds={self.rounds}; lower it"
            )
        if self.halving.axis and self.halving.min_rounds % self.evaluate_every:
            raise ConfigError(
                f"halving.min_rounds={self.halving.min_rounds} is no multiple of "
                f"evaluate_every={self.evaluate_every}: a rung has to be an evaluated round; "
                "change one of them"
            )
        for key in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            if getattr(s, key) > n:
                raise ConfigError(
                    f"strategy.{key}={getattr(s, key)} is more than num_clients={n}; lower it"
                )
            if getattr(s, key) > (first := self.online(1)):
                raise ConfigError(
                    f"strategy.{key}={getattr(s, key)} is more than the {first} clients there are "
                    f"before shift.join_round={self.shift.join_round}; lower it or shift.newcomers"
                )
        if self.shift.num_groups > n:
            raise ConfigError(
                f"shift.groups={self.shift.num_groups} is more than num_clients={n}; lower it"
            )
        self._check_task()
        *others, last = STRATEGIES.saying("private_mean")
        if self.privacy.name != "none" and s.name not in (*others, last):
            what = "noises a plain mean over clients", "takes none"
            if self.privacy.in_clients:
                what = "noises what clients train", "may ask them for more"
            raise ConfigError(
                f"privacy={self.privacy.name} {what[0]}, and "
                f"strategy={s.name} {what[1]}; set strategy={', '.join(others)} or "
                f"{last}, or privacy=none"
            )
        if n * s.fraction_train * (1 + 1e-12) < 1 and s.min_train_nodes == 1 and n > 1:
            raise ConfigError(
                f"strategy.fraction_train={s.fraction_train:g} of num_clients={n} is no client; "
                "raise one of them, or strategy.min_train_nodes"
            )
        cohort = s.trained(self.online(1))  # the smallest
        self._check_schedule(cohort)
        self._check_sampling()
        self._check_compression()
        self._check_attack()
        self._check_defence(cohort)
        solved = self.account.solved()
        object.__setattr__(self, "privacy", solved)  # a validator may, of what is frozen after it
        if self.secure_aggregation:
            check_sums(self)
        try:
            s.check()
            s.check_in(Setting(n, cohort, self.rounds, self.training.optimizer, self.model.name))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return self

    def _check_task(self) -> None:
        """Refuse what the task's examples and targets are not made for."""
        task, shift = self.dataset, self.shift
        of = f"dataset.task={task.task}"
        if shift.needs == "images" and task.shows != "images":
            fit = ", ".join(n for n in SHIFTS if SHIFTS[n].needs != "images")
            raise ConfigError(
                f"shift={shift.name} changes pixels, and {of} has none; set shift to one of {fit}"
            )
        if shift.needs == "classes" and task.target_kind == "real":
            raise ConfigError(
                f"shift={shift.name} changes classes, and {of} with dataset.target=real has none; "
                "set shift=none"
            )
        if self.training.augment != "none" and task.shows != "images":
            raise ConfigError(
                f"training.augment={self.training.augment} mirrors images, and {of} has none; set "
                "training.augment=none"
            )
        if self.metrics and task.target_kind == "real":
            raise ConfigError(
                f"metrics={','.join(self.metrics)} count classes, and {of} with "
                f"dataset.target=real has none; leave them out: {' and '.join(task.metrics)} are "
                "always there"
            )
        if self.strategy.name in STRATEGIES.saying("needs_classes") and task.target_kind == "real":
            raise ConfigError(
                f"strategy={self.strategy.name} goes by classes, and {of} with "
                "dataset.target=real has none; set another strategy"
            )
        attack = self.attack
        if attack.needs == "images" and task.shows != "images":
            raise ConfigError(
                f"attack={attack.name} changes pixels, and {of} has none; set another attack"
            )
        if attack.at_data and task.target_kind == "real":
            raise ConfigError(
                f"attack={attack.name} changes classes, and {of} with dataset.target=real has "
                "none; set another attack"
            )
        if self.schedule.reads_accuracy and task.target_kind == "real":
            raise ConfigError(
                f"schedule={self.schedule.name} goes by accuracies, and {of} with "
                "dataset.target=real has none; set schedule.interval=0"
            )
        share, s = self.partition.eval_fraction, self.strategy.fraction_evaluate
        if self.schedule.reads_accuracy and not (share and s):
            key = "strategy.fraction_evaluate" if share else "partition.eval_fraction"
            raise ConfigError(
                f"schedule={self.schedule.name} goes by accuracies on what clients hold out, and "
                f"with {key}=0 there are none; raise it, or set schedule.interval=0"
            )
        if self.partition.by_column and not self.natural_column:
            raise ConfigError(
                f"partition={self.partition.name} needs to know whose an example is, and {of} "
                "does not say it itself; set partition.column"
            )
        if self.partition.by_column and shift.deals:
            raise ConfigError(
                f"shift={shift.name} says which examples a group has, and "
                f"partition={self.partition.name} which a client has; set one of them otherwise"
            )
        if shift.num_groups > 1 and self.dataset.groups_by(self.natural_column) > 1:
            raise ConfigError(
                f"shift.groups={shift.num_groups} with dataset.groups: the known groups would be "
                "of two kinds; set shift=none or dataset.groups=0"
            )

    @property
    def natural_column(self) -> str:
        """The column that says whose an example is, where the partition goes by one."""
        if not self.partition.by_column:
            return ""
        return self.partition.goes_by or self.dataset.natural

    @property
    def known_groups(self) -> int:
        """How many groups the data set knows of its clients; 1: none."""
        whole = self.partition.keeps_values
        return self.dataset.groups_by(self.natural_column) if whole else 1

    @property
    def asked_metrics(self) -> tuple[str, ...]:
        """Metrics beside those of every trial: its own, and those of its task."""
        return (*self.metrics, *self.dataset.metrics)

    def _check_sampling(self) -> None:
        """Refuse Poisson samples where somebody is needed, or where some are not there."""
        if self.sampling == "fixed":
            return
        means = STRATEGIES.saying("private_mean")
        if self.strategy.name not in means:
            raise ConfigError(
                f"sampling=poisson may draw nobody, and strategy={self.strategy.name} needs "
                f"somebody; set strategy={', '.join(means)}, or sampling=fixed"
            )
        if self.devices.timed:
            raise ConfigError(
                f"sampling=poisson with devices={self.devices.name}: each client has to be there "
                "to be drawn; set devices=none or sampling=fixed"
            )

    @property
    def account(self) -> Accounted:
        """What is accounted of its privacy."""
        return Accounted(self)

    def _check_schedule(self, cohort: int) -> None:
        """Refuse devices and schedules that go with nothing else here."""
        schedule, s = self.schedule, self.strategy
        try:
            self.devices.check_in(self.num_clients)
            schedule.check_in(Setting(self.online(1), cohort, self.rounds))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not self.devices.timed and not schedule.timeless:
            raise ConfigError(
                f"schedule={schedule.name} with devices=none: no time passes; set "
                f"devices={', '.join(name for name in DEVICES if name != 'none')}, or schedule=sync"
            )
        takes = STRATEGIES.saying("any_version")
        if schedule.stale and s.name not in takes:
            raise ConfigError(
                f"schedule={schedule.name} makes models of replies to older ones, and "
                f"strategy={s.name} needs replies to the last one; set "
                f"strategy={', '.join(takes)}, or schedule=sync, deadline, over_selection, partial"
            )
        if schedule.clustered and not self._models.clusters_clients:
            raise ConfigError(
                f"schedule={schedule.name} has a buffer per cluster, and strategy={s.name} no "
                "clusters; set strategy=oracle, or schedule=fedbuff"
            )
        why = schedule.unfit(s.name, clusters=self._models.clusters_clients)
        if why:
            raise ConfigError(why)
        server: ServerRule | None = getattr(s, "server", None)
        if self.devices.timed and server is not None and server.follows_measured:
            raise ConfigError(
                f"strategy.server.mode={server.mode} with devices={self.devices.name}: virtual "
                "time would follow the measured load; set strategy.server.mode=simulated, or "
                "another strategy.server.rule"
            )
        if schedule.stale and self.privacy.name != "none":
            raise ConfigError(
                f"privacy={self.privacy.name} with schedule={schedule.name}: its guarantee is for "
                "replies to one model; set privacy=none or schedule=sync"
            )

    def _check_compression(self) -> None:
        """Refuse to compress what is no update of one model, and what is clipped first."""
        given = f"compression={self.compression.name}"
        if not isinstance(self.compression, Compressor):
            return
        if not self._models.sends_whole_model:
            raise ConfigError(
                f"{given} needs clients that are sent one model and send it back, and those of "
                f"strategy={self.strategy.name} don't; set compression=none or another strategy"
            )
        if self.compression.down and self._models.clusters_clients:
            raise ConfigError(
                f"{given} with compression.down=true needs clients that are all sent one averaged "
                f"model, and strategy={self.strategy.name} has one per cluster; set "
                "compression.down=false or another strategy"
            )
        if self.privacy.name != "none":
            raise ConfigError(
                f"{given} with privacy={self.privacy.name}, which clips and noises whole updates; "
                "set one of them to none"
            )

    def _check_attack(self) -> None:
        """Refuse attackers that do nothing, and what they could not send."""
        attack = self.attack
        try:
            attack.check_in(self.num_clients)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        given = f"attack={attack.name}"
        if not attack.at_replies:
            return
        if not self._models.averages_models:
            raise ConfigError(
                f"{given} forges what clients send, and those of strategy={self.strategy.name} "
                "send nothing; set an attack at the data such as attack=label_flip, or attack=none"
            )
        if self.compression.compresses:
            raise ConfigError(
                f"{given} with compression={self.compression.name}: a forged update is sent whole; "
                "set one of them to none"
            )

    def _check_defence(self, cohort: int) -> None:
        """Refuse a defence of what is no mean of updates of one model."""
        if not self.defence.defends:
            return
        given, s, has = f"defence={self.defence.name}", self.strategy, self._models
        if not (has.averages_models and has.sends_whole_model and has.mean_of_models):
            raise ConfigError(
                f"{given} needs a method that takes means of models which clients were sent and "
                f"send back, and strategy={s.name} is none; set defence=none or another strategy"
            )
        if self.privacy.name != "none":
            raise ConfigError(
                f"{given} with privacy={self.privacy.name}: the noise is for a plain mean of the "
                "clients' own updates; set one of them to none"
            )
        if self.schedule.stale:
            raise ConfigError(
                f"{given} with schedule={self.schedule.name}: it compares updates of one model; "
                "set defence=none or schedule=sync"
            )
        try:
            self.defence.check_in(cohort)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @model_validator(mode="after")
    def _happens(self) -> Self:
        """Refuse what no round is left for."""
        if why := never_happens(self):
            raise ConfigError(why)
        return self

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: full key -> why."""
        return idle_keys(self)

    def online(self, server_round: int) -> int:
        """Return how many clients a round has: all but newcomers that are to come, or one."""
        late = (
            round(self.num_clients * self.shift.newcomers)
            if server_round < self.shift.join_round
            else 0
        )
        return max(1, self.num_clients - late)

    def never_logs(self, metric: Metric) -> str:
        """Return why such trials do not log a metric, and what to change; nothing if they do."""
        for need in metric.all_needs:
            if why := self._lacks(need):
                return f"never logged: {why}"
        if metric.on_request and metric.on_request not in self.asked_metrics:
            if metric.on_request not in SCORES:
                return f"none of dataset.task={self.dataset.task}'s metrics; take another one"
            asked = ",".join([*self.metrics, metric.on_request])
            return f"logged on request; set metrics=[{asked}]"
        return ""

    def _check_watched(self, section: str, rules: StopConfig | HalvingConfig) -> None:
        """Refuse to watch what such trials never have, or what has no better and worse."""
        metric = CATALOG.watched(rules.metric)
        given = f"{section}.metric={rules.metric}"
        if why := self.never_logs(metric):
            raise ConfigError(f"{given} is {why}")
        if rules.mode == "auto" and not metric.better:
            raise ConfigError(
                f"{given} says not which is better; set {section}.mode=max or {section}.mode=min"
            )

    def _lacks(self, need: Need) -> str:
        """Return why such trials lack what a metric needs, and what to change; or nothing."""
        has, s = self._models, self.strategy
        no_evaluation = "no client evaluates with strategy.fraction_evaluate=0; raise it"
        if need is Need.GLOBAL_MODEL and not has.has_global_model:
            return (
                f"strategy={s.name} has no global model; take 3_clients/acc or 3_clients/test_acc"
            )
        if need is Need.CLUSTERS and not has.clusters_clients:
            return f"strategy={s.name} has no clusters; take another metric or strategy"
        if need is Need.CLASSES and self.dataset.target_kind == "real":
            return "a real number has no accuracy; take 3_clients/r2, 3_clients/mae or a loss"
        if need is Need.GROUPS and max(self.shift.num_groups, self.known_groups) == 1:
            return "there are no known groups to agree with; set shift and shift.groups"
        if why := self._lacks_attack(need, has):
            return why
        if need is Need.HELD_OUT and self.partition.eval_fraction == 0:
            return (
                "no client holds out examples with partition.eval_fraction=0; raise it, or take "
                "3_clients/test_acc or 3_clients/train_loss"
            )
        if need is Need.HELD_OUT and s.fraction_evaluate == 0:
            return no_evaluation
        if need in (Need.HELD_OUT, Need.TOLD) and not self.privacy.tells:
            return "clients tell nothing with privacy.client_metrics=false; take 1_global/acc"
        if need is Need.SUMS and not self.secure_aggregation:
            return "every update is seen with secure_aggregation=false; set it to true"
        if need is Need.EPSILON and self.account.plan is None:
            return f"nothing is computed with {self.account.without_noise}; add noise"
        own = self.privacy.in_clients and self.privacy.noises
        if need is Need.OWN_EPSILON and not own:
            return "clients have an epsilon of their own under privacy=local_sgd alone; set it"
        if need is Need.OWN_TESTED and has.personal_models:
            if s.fraction_evaluate == 0:
                return no_evaluation
            if self.evaluate_personal == "last":
                return (
                    f"not before the last round under strategy={s.name}; set "
                    "evaluate_personal=always"
                )
        return ""

    def _lacks_attack(self, need: Need, has: ModelTraits) -> str:
        """Return why such trials lack what a metric of attackers needs; or nothing."""
        attack, s = self.attack, self.strategy
        if need is Need.ATTACKERS and not attack.attacks:
            return "there are no attackers with attack=none; set another one"
        if need is Need.GOAL and not attack.aims:
            return f"attack={attack.name} aims at no labels; set attack=backdoor or label_flip"
        if need is Need.ACCUSES and not has.accuses:
            return f"strategy={s.name} leaves no reply out; take another metric or strategy"
        return ""

    @property
    def _models(self) -> "ModelTraits":
        """What the strategy says about its models."""
        return models_of(STRATEGIES[self.strategy.name])

    def canonical(self) -> dict[str, Any]:
        """Return what defines the trial, without the fields that do not apply."""
        left_out = set()
        if self.evaluate_personal == "last" or not self._models.personal_models:
            left_out.add("evaluate_personal")
        if not self.metrics:
            left_out.add("metrics")
        if self.sampling == "fixed":  # younger than keys of trials
            left_out.add("sampling")
        if not self.secure_aggregation:
            left_out |= {"secure_aggregation", "secagg"}
        left_out |= {part for part, kinds in LATER.items() if getattr(self, part) == kinds.make()}
        kept = {
            k: value
            for k, value in super().canonical().items()
            if k in TrialConfig.model_fields and k not in left_out and value != {}
        }
        return kept | ({"code": self.code} if self.code else {})

    @property
    def code(self) -> dict[str, str]:
        """The digests of the code of somebody's own: by part; of data their content counts."""
        parts = {part: o.code.digest for part, o in self.origins.items() if part != "dataset"}
        return parts | {f"metrics.{o.name}": o.code.digest for o in self._scores}

    @model_validator(mode="after")
    def _know_own_metrics(self) -> Self:
        found = (SCORES.origin(name) for name in self.metrics)
        self._scores = tuple(origin for origin in found if origin is not None)
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Know metrics of somebody's own in a process that the trial was sent to."""
        super().__setstate__(state)
        for origin in self._scores:
            SCORES.receive(origin)

    @property
    def origins(self) -> dict[str, Origin]:
        """Where the parts come from that are not of this project: ``strategy``, ``model``, ..."""
        found = {part: getattr(self, part).part_origin for part in PARTS}
        return {part: origin for part, origin in found.items() if origin is not None}

    @property
    def told(self) -> tuple[str, ...]:
        """What a reader of its results has to know that its settings alone say, in lines."""
        found = []
        if self.schedule.stale and self._models.assigns_in_evaluation:
            found.append(
                f"schedule={self.schedule.name}: clients of strategy={self.strategy.name} choose "
                "among the models that they were sent, and others may have moved these since: who "
                "is in which cluster may be stale"
            )
        if self.secure_aggregation:
            found.append(sums_said(self))
        return tuple(found)

    @property
    def own_code(self) -> tuple[Code, ...]:
        """The code of somebody's own that it is made of."""
        return tuple(origin.code for origin in (*self.origins.values(), *self._scores))

    @classmethod
    def is_problem(cls, key: str) -> bool:
        """Return whether a setting, by its full key, is part of the problem."""
        return any(key == part or key.startswith(f"{part}.") for part in cls.PROBLEM)

    @property
    def key(self) -> str:
        """Stable identity of the trial: 12 hex digits of the SHA-256 of its canonical form.

        The content of the data is a part of it: see :func:`fedsweep.data.sources.identified`.
        """
        return identity(self.canonical())

    @property
    def course_key(self) -> str:
        """The identity of what happens in each round, however many there are: 12 hex digits.

        Nothing where it depends on their number: under halving, by its rungs, and where clients'
        noise is found for all rounds together.
        """
        course = {key: value for key, value in self.canonical().items() if key != "rounds"}
        return "" if self.halving.axis or self.privacy.solves_by_data else identity(course)

    @property
    def settings_key(self) -> str:
        """The identity of what was asked for, whatever the content of the data: 12 hex digits."""
        canonical = self.canonical()
        return identity(canonical | {"dataset": canonical["dataset"] | {"content": None}})


class RunConfig(SessionConfig, TrialConfig):
    """A trial and the session that runs it: all the keys that there are."""

    @model_validator(mode="after")
    def _has_hosts_for_it(self) -> Self:
        """Refuse what no host can do."""
        if self.training.precision == "tf32" and not any(
            group.num_gpus for group in self.resources.hosts.values()
        ):
            raise ConfigError(
                "training.precision=tf32 is a format of NVIDIA GPUs, and no host has one; set "
                "resources=gpu or training.precision=float32"
            )
        return self


def identity(canonical: dict[str, Any]) -> str:
    """Return what tells trials from others: 12 hex digits of their canonical form's SHA-256."""
    text = json.dumps(canonical, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
