"""What is accounted of a trial's privacy: what its rounds release, and what no figure covers."""

from dataclasses import dataclass

from fedsweep.accounting import Account, Relation, Release
from fedsweep.config.privacy import Plan, PrivacyConfig
from fedsweep.config.sections import Sections
from fedsweep.errors import ConfigError

_DP_SGD = "DP-SGD in each client, batches drawn example by example (Poisson)"


@dataclass(frozen=True)
class Accounted:
    """A trial as its privacy is accounted.

    Parameters
    ----------
    config : Sections
        The trial.
    """

    config: Sections

    # What is refused before anything starts

    def solved(self) -> PrivacyConfig:
        """Return the trial's privacy with the noise that a target asks for.

        Raises
        ------
        ConfigError
            Epsilon does not cover the trial, or no account of it means anything.
        """
        privacy, stop = self.config.privacy, self.config.stop
        if not privacy.noises:
            if stop.epsilon is not None:
                raise ConfigError(
                    f"stop.epsilon={stop.epsilon:g} with {self.without_noise}: nothing is "
                    "computed that could end the trial; leave it out, or add noise"
                )
            return privacy
        if privacy.sums:
            self._check_account()
        if privacy.strict and (uncovered := self.uncovered()):
            what, remedy = next(iter(uncovered.items()))
            raise ConfigError(
                f"privacy={privacy.name}: epsilon does not cover {what}; set {remedy}, or "
                "privacy.strict=false, which names it in the run"
            )
        if privacy.in_clients and stop.epsilon is not None:
            raise ConfigError(
                f"stop.epsilon={stop.epsilon:g} with privacy=local_sgd, under which each client "
                "has an epsilon of its own; set stop.metric=3_clients/epsilon_max, stop.mode=max "
                "and stop.target"
            )
        if privacy.target_epsilon is not None and privacy.sums:
            z = self._solved_noise(privacy.target_epsilon)
            privacy = privacy.model_copy(update={"noise_multiplier": z})
        self._check_count(privacy.noise_multiplier)
        self._check_stop(privacy)
        return privacy

    def _solved_noise(self, epsilon: float) -> float:
        """Return the noise multiplier that all rounds together need."""
        return self._plan(1.0).account.multiplier(
            lambda z: self._plan(z).releases(self.config.rounds), epsilon
        )

    def _check_stop(self, privacy: PrivacyConfig) -> None:
        """Refuse a budget that is spent before the trial may end."""
        stop, every = self.config.stop, self.config.evaluate_every
        if stop.epsilon is None or not privacy.sums:
            return
        first = min(every, self.config.rounds)
        if (spent := self._plan(privacy.noise_multiplier).epsilon(first)) > stop.epsilon:
            raise ConfigError(
                f"stop.epsilon={stop.epsilon:g} is less than the {spent:.4g} that is spent by "
                f"the first evaluation, in round {first}; raise it or "
                "privacy.noise_multiplier, or evaluate earlier"
            )

    def _check_count(self, z: float) -> None:
        """Refuse more noise than the count of adaptive clipping leaves for the updates."""
        privacy, there = self.config.privacy, self.config.online(1)
        if not privacy.adapts:
            return
        share = self.config.strategy.fraction_train
        cohort = share * there if self._poisson else self.config.strategy.trained(there)
        if z >= cohort / 10:
            solved = "" if privacy.target_epsilon is None else " (for privacy.target_epsilon)"
            raise ConfigError(
                f"privacy.noise_multiplier={z:g}{solved} with {cohort:g} "
                f"training clients a round: adaptive clipping needs less than {cohort / 10:g} "
                "(clients / 10); lower it or train more clients"
            )

    def _check_account(self) -> None:
        """Refuse an accountant that does not know how clients are drawn, and a delta of no use."""
        privacy, n = self.config.privacy, self.config.num_clients
        if privacy.accountant == "pld" and self._relation is Relation.REPLACE:
            raise ConfigError(
                "privacy.accountant=pld knows no samples of a fixed size; set sampling=poisson, "
                "strategy.fraction_train=1 or privacy.accountant=rdp"
            )
        if privacy.delta is not None and privacy.delta >= 1 / n and n > 1:
            raise ConfigError(
                f"privacy.delta={privacy.delta:g} of num_clients={n}: from {1 / n:.3g} on it lets "
                "one client's data be published as they are; lower it"
            )

    def uncovered(self) -> dict[str, str]:
        """Return what is told of clients beside the noised models: what -> the setting without.

        What a network keeps beside its parameters is known when it is built: see
        :func:`fedsweep.trial.privacy.uncovered_state`.
        """
        privacy, schedule, attack = self.config.privacy, self.config.schedule, self.config.attack
        found = {}
        if privacy.tells:
            found["what clients tell beside updates (losses, accuracies, numbers of examples)"] = (
                "privacy.client_metrics=false"
            )
        if schedule.reads_clients:
            found[f"whom schedule={schedule.name} asks, by what clients told"] = "schedule=sync"
        # Attackers may send what follows from others' updates: then one client moves theirs too.
        if attack.at_replies and privacy.sums:
            found[f"what attack={attack.name} sends, which may depend on others' updates"] = (
                "attack=none"
            )
        return found

    # What is computed

    @property
    def plan(self) -> Plan | None:
        """What its rounds release under privacy; None without noise, of which nothing is said."""
        privacy = self.config.privacy
        return self._plan(privacy.noise_multiplier) if privacy.noises and privacy.sums else None

    def of_clients(self, examples: int | None) -> Account:
        """Return what is computed of each client's own training under ``privacy=local_sgd``.

        Parameters
        ----------
        examples : int or None
            Training examples of all clients; None: not known yet.
        """
        delta = self.config.privacy.delta
        if delta is None and examples is not None:
            delta = max(examples, 2) ** -1.1
        return Account(Relation.EXAMPLE, delta, self.config.privacy.accountant)

    def _plan(self, z: float) -> Plan:
        """Return what rounds of a noise multiplier release, and what is computed of it."""
        delta, shift = self.config.privacy.delta, self.config.shift
        account = Account(
            self._relation,
            max(self.config.num_clients, 2) ** -1.1 if delta is None else delta,
            self.config.privacy.accountant,
        )
        joins = shift.join_round if shift.newcomers else 0
        changes = (joins,) if joins > 1 else ()
        return Plan(account, z, lambda number: self._release(number, z), changes, self._drawn)

    def _release(self, server_round: int, z: float) -> Release:
        """Return what a round releases if all reply that it asks."""
        there = self.config.online(server_round)
        if self._poisson:
            return Release(z, rate=self.config.strategy.fraction_train)
        if self.config.devices.timed:  # who is there, and who comes in time, is nobody's draw
            return Release(z)
        drawn = self.config.strategy.trained(there)
        return Release(z, drawn, there) if drawn < there else Release(z)

    @property
    def _poisson(self) -> bool:
        return self.config.sampling == "poisson"

    @property
    def _relation(self) -> Relation:
        """What a guarantee can be about, by how clients are drawn."""
        if self._poisson:
            return Relation.ADD_OR_REMOVE
        rounds = {1, self.config.rounds}  # newcomers come once
        amplified = any(self._release(number, 1.0).is_amplified for number in rounds)
        return Relation.REPLACE if amplified else Relation.ZERO_OUT

    # In words

    @property
    def without_noise(self) -> str:
        """The setting that is why there is no noise."""
        privacy = self.config.privacy
        if privacy.noises or privacy.name == "none":
            return f"privacy={privacy.name}"
        return "privacy.noise_multiplier=0"

    @property
    def said(self) -> str:
        """What its privacy guarantees of the models, in a line; empty under privacy=none.

        Whatever does not hold for it is named.
        """
        privacy, plan = self.config.privacy, self.plan
        if plan is not None:
            return self._said_of(f"noise multiplier {plan.noise_multiplier:g}, {plan.said}")
        if privacy.in_clients and privacy.noises:
            noise = f"noise multiplier {privacy.noise_multiplier:g}"
            if privacy.solves_by_data:  # by how many examples clients have
                noise = f"noise for epsilon {privacy.target_epsilon:g} of who spends most"
            return self._said_of(f"{noise}, {_DP_SGD}")
        return self.said_of_kind

    @property
    def said_of_kind(self) -> str:
        """What is accounted of its privacy, in words that trials of other noise share."""
        privacy = self.config.privacy
        if privacy.name == "none":
            return ""
        if not privacy.noises:
            return f"privacy={privacy.name}: clipping without noise guarantees nothing"
        return self._said_of(_DP_SGD if privacy.in_clients else self._kind_of_draw)

    def _said_of(self, drawn: str) -> str:
        privacy = self.config.privacy
        account = self.of_clients(None) if privacy.in_clients else self._plan(1.0).account
        told = f"privacy={privacy.name}: {drawn}, {account.said}"
        named = [] if privacy.strict else list(self.uncovered())
        return f"{told}; epsilon does not cover {', nor '.join(named)}" if named else told

    @property
    def _kind_of_draw(self) -> str:
        return {
            Relation.ADD_OR_REMOVE: "each client drawn on its own (Poisson)",
            Relation.REPLACE: "samples of a fixed size without replacement",
            Relation.ZERO_OUT: "no secret who takes part",
        }[self._relation]

    @property
    def _drawn(self) -> str:
        """How clients are drawn, in words."""
        s, there = self.config.strategy, self.config.online(self.config.rounds)
        if self._poisson:
            return f"each of {there} clients drawn with probability {s.fraction_train:g}"
        drawn = s.trained(there)
        if self.config.devices.timed:
            return f"{drawn} of {there} clients asked, who is known"
        if drawn == there:
            return f"all {there} clients asked"
        return f"{drawn} of {there} clients drawn without replacement"
