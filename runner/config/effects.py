"""Settings that change nothing: which have no effect beside the others, and what never happens.

A key of other options of its group is refused by its declaration (``only``). Here stand the keys
that another setting switches off, and the events that no round is left for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsweep.config.trial import TrialConfig

_CUTS = "gate linkage distance representation recluster_every stable_after sketch"
"""What tells clusters apart, where there is more than one."""


def idle_keys(config: "TrialConfig") -> dict[str, str]:
    """Return the keys that have no effect in a trial: full key -> the setting that is why."""
    found = {**_idle_training(config), **_idle_strategy(config), **_idle_server(config)}
    shift, stop = config.shift, config.stop
    if config.partition.name == "centralized":
        found["num_clients"] = "partition=centralized, which has one client"
    if not shift.drift_round:
        found["shift.drift_fraction"] = "shift.drift_round=0"
    if not shift.newcomers:
        found["shift.join_round"] = "shift.newcomers=0"
    if stop.patience is None:
        found["stop.min_delta"] = "stop.patience=null"
        if stop.target is None:
            found |= dict.fromkeys(("stop.metric", "stop.mode"), "no stop.target or stop.patience")
    if not config.halving.axis:
        rules = ("metric", "mode", "min_rounds", "factor")
        found |= {f"halving.{key}": "no halving.axis" for key in rules}
    return found


def _idle_training(config: "TrialConfig") -> dict[str, str]:
    training, strategy = config.training, config.strategy.name
    found = {}
    if training.optimizer == "adam":
        found["training.momentum"] = "training.optimizer=adam"
    if training.steps is not None:
        found["training.epochs"] = f"training.steps={training.steps}"
    pulls = {"fedprox": "strategy.proximal_mu", "fedsoft": "strategy.soft_lambda"}
    if strategy in pulls:
        found["training.proximal_mu"] = f"strategy={strategy}, whose pull is {pulls[strategy]}"
    return found


def _idle_strategy(config: "TrialConfig") -> dict[str, str]:
    s = config.strategy
    applies = s.canonical()
    why: dict[str, str] = {}
    if s.fraction_evaluate == 0:
        why["min_evaluate_nodes"] = "strategy.fraction_evaluate=0"
    if "threshold" in applies and s.threshold is not None:
        names = ("choose_k", "num_clusters", "max_clusters")
        why |= dict.fromkeys(names, f"strategy.threshold={s.threshold:g}")
    elif "choose_k" in applies:
        other = "max_clusters" if s.choose_k == "given" else "num_clusters"
        why[other] = f"strategy.choose_k={s.choose_k}"
        if s.choose_k == "given" and s.num_clusters == 1:
            why |= dict.fromkeys(_CUTS.split(), "strategy.num_clusters=1")
    if s.name == "kmeans" and not s.recluster_every:
        why["stable_after"] = "strategy.recluster_every=0"
    return {f"strategy.{key}": reason for key, reason in why.items() if key in applies}


def _idle_server(config: "TrialConfig") -> dict[str, str]:
    s = config.strategy
    if "server" not in s.canonical():
        return {}
    found: dict[str, str] = {}
    if s.server.rule != "load":
        reason = f"strategy.server.rule={s.server.rule}"
        found |= {f"strategy.server.{key}": reason for key in ("hysteresis", "min_tenure")}
    if s.server.mode == "simulated":  # a client's nominal load is the same in every round
        found["strategy.server.ewma"] = "strategy.server.mode=simulated"
    return found


def never_happens(config: "TrialConfig") -> str | None:
    """Return in one line why something that a trial asks for can't happen; None if all can."""
    checks = (_never_clusters, _never_differs, _never_shifts, _never_told)
    return next((why for check in checks if (why := check(config))), None)


def _never_clusters(config: "TrialConfig") -> str | None:
    s, rounds = config.strategy, config.rounds
    applies = s.canonical()
    if "warmup_rounds" in applies:
        last = rounds - (s.name == "cfl")  # which splits after it
        if s.warmup_rounds > last:
            return (
                f"strategy.warmup_rounds={s.warmup_rounds} with rounds={rounds}: strategy={s.name} "
                f"would never cluster; set it to {last} at most, or raise rounds"
                if last
                else f"rounds={rounds}: strategy=cfl splits after its warm-up; set rounds=2"
            )
    if s.name == "kmeans" and s.recluster_every:
        times = (rounds - s.warmup_rounds) // s.recluster_every
        if not times:
            return (
                f"strategy.recluster_every={s.recluster_every} with rounds={rounds} and "
                f"warmup_rounds={s.warmup_rounds}: the clients would be grouped once; lower it, or "
                "set it to 0"
            )
        if s.stable_after == 1 or s.stable_after > times:
            return (
                f"strategy.stable_after={s.stable_after} with {times + 1} clusterings in "
                f"rounds={rounds}: it takes 2 at least, and {times} at most to leave one out; "
                "change it, or set it to 0"
            )
    return None


def _never_differs(config: "TrialConfig") -> str | None:
    s, rounds = config.strategy, config.rounds
    if s.name == "fedsoft" and s.estimate_every > max(rounds, 2):
        return (
            f"strategy.estimate_every={s.estimate_every} is more than rounds={rounds}: the shares "
            "are estimated once; lower it to rounds at most"
        )
    weights = s.server.cpu_weight + s.server.mem_weight + s.server.node_weight
    by_load = s.server.rule in ("load", "load_once")
    if "server" in s.canonical() and by_load and not weights:
        return (
            f"strategy.server.rule={s.server.rule} with all weights 0: every load is the same; "
            "raise cpu_weight, mem_weight or node_weight"
        )
    return None


def _never_shifts(config: "TrialConfig") -> str | None:
    shift, rounds, clients = config.shift, config.rounds, config.num_clients
    if shift.newcomers:
        if shift.join_round > rounds:
            return (
                f"shift.join_round={shift.join_round} is more than rounds={rounds}: the newcomers "
                "would never join; lower it, or raise rounds"
            )
        if not round(clients * shift.newcomers):
            return (
                f"shift.newcomers={shift.newcomers:g} of num_clients={clients} is no client, and "
                "none would join; raise one of them"
            )
    if "drift_round" in shift.canonical() and shift.drift_round:
        if shift.drift_round > rounds:
            return (
                f"shift.drift_round={shift.drift_round} is more than rounds={rounds}: the groups "
                "would never drift; lower it, or raise rounds"
            )
        largest = -(-clients // shift.groups)
        if shift.groups == 1 or not round(shift.drift_fraction * largest):
            return (
                f"shift.drift_fraction={shift.drift_fraction:g} of {shift.groups} groups of at "
                f"most {largest} clients moves nobody; raise it, or add groups or clients"
            )
    return None


def _never_told(config: "TrialConfig") -> str | None:
    every, rounds, patience = config.evaluate_every, config.rounds, config.stop.patience
    if every > rounds:
        return (
            f"evaluate_every={every} is more than rounds={rounds}; lower it to rounds, which "
            "evaluates the last round alone"
        )
    evaluations = -(-rounds // every)
    if patience is not None and patience >= evaluations:
        return (
            f"stop.patience={patience} with {evaluations} evaluations in rounds={rounds}: it would "
            "never stop the trial; lower it, or evaluate more often"
        )
    if config.strategy.name == "fedavg_ft" and config.strategy.fraction_evaluate == 0:
        return (
            "strategy=fedavg_ft with strategy.fraction_evaluate=0: clients fine-tune before they "
            "are evaluated, and none is; raise strategy.fraction_evaluate"
        )
    return None
