"""Settings that change nothing: which have no effect beside the others, and what never happens.

A key of other options of its group is refused by its declaration (``only``). Here stand the keys
that another setting switches off, and the events that no round is left for; a method's own are in
its file (``strategies/``).
"""

from fedsweep.config.secure import SecureSections


def idle_keys(config: SecureSections) -> dict[str, str]:
    """Return the keys that have no effect in a trial: full key -> the setting that is why."""
    found = _idle_training(config)
    found |= {f"strategy.{key}": why for key, why in config.strategy.idle().items()}
    found |= {f"shift.{key}": why for key, why in config.shift.idle().items()}
    found |= {f"attack.{key}": why for key, why in config.attack.idle().items()}
    found |= {f"devices.{key}": why for key, why in config.devices.idle().items()}
    found |= {f"schedule.{key}": why for key, why in config.schedule.idle().items()}
    found |= config.schedule.rules_out()
    found |= _idle_privacy(config)
    stop = config.stop
    if config.partition.one_client:
        found["num_clients"] = f"partition={config.partition.name}, which has one client"
    if stop.patience is None:
        found["stop.min_delta"] = "stop.patience=null"
        if stop.target is None:
            found |= dict.fromkeys(("stop.metric", "stop.mode"), "no stop.target or stop.patience")
    if not config.halving.axis:
        rules = ("metric", "mode", "min_rounds", "factor")
        found |= {f"halving.{key}": "no halving.axis" for key in rules}
    return found


def _idle_privacy(config: SecureSections) -> dict[str, str]:
    privacy = config.privacy
    found: dict[str, str] = {}
    if not config.secure_aggregation:
        fields = type(config.secagg).model_fields
        found |= {f"secagg.{key}": "secure_aggregation=false" for key in fields}
    if config.sampling == "poisson":
        found["strategy.min_train_nodes"] = "sampling=poisson"
    if not privacy.tells:
        keys = ("fraction_evaluate", "min_evaluate_nodes")
        found |= {f"strategy.{key}": "privacy.client_metrics=false" for key in keys}
    if privacy.target_epsilon is not None:
        found["privacy.noise_multiplier"] = f"privacy.target_epsilon={privacy.target_epsilon:g}"
    if privacy.name != "none" and not privacy.noises:
        unused = ("delta", "accountant", "strict")
        found |= {f"privacy.{key}": "privacy.noise_multiplier=0" for key in unused}
    return found


def _idle_training(config: SecureSections) -> dict[str, str]:
    training, strategy = config.training, config.strategy
    found = {}
    if training.optimizer == "adam":
        found["training.momentum"] = "training.optimizer=adam"
    if training.steps is not None:
        found["training.epochs"] = f"training.steps={training.steps}"
    if strategy.pull:
        why = f"strategy={strategy.name}, whose pull is strategy.{strategy.pull}"
        found["training.proximal_mu"] = why
    return found


def never_happens(config: SecureSections) -> str | None:
    """Return in one line why something that a trial asks for can't happen; None if all can."""
    checks = (_never_shifts, _never_told)
    return next((why for check in checks if (why := check(config))), None)


def _never_shifts(config: SecureSections) -> str | None:
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
    if shift.drifts_in:
        if shift.drifts_in > rounds:
            return (
                f"shift.drift_round={shift.drifts_in} is more than rounds={rounds}: the groups "
                "would never drift; lower it, or raise rounds"
            )
        largest = -(-clients // shift.num_groups)
        if shift.num_groups == 1 or not round(shift.drifting * largest):
            return (
                f"shift.drift_fraction={shift.drifting:g} of {shift.num_groups} groups of at "
                f"most {largest} clients moves nobody; raise it, or add groups or clients"
            )
    return None


def _never_told(config: SecureSections) -> str | None:
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
    return None
