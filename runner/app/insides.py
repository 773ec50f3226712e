"""What running somebody's Flower app takes of Flower beyond its public names.

Each thing here has a contract test (``tests/contract/test_apps.py``).

===========================  ====================================================================
what                         why there is no public way
===========================  ====================================================================
``app_settings``             how Flower reads and checks an app's ``pyproject.toml``
``app_files``                which of an app's files Flower bundles, so that they travel
``read_words``               how ``flwr run`` reads ``--run-config``
``DEFAULT_NODES``            the clients of a simulation that says nothing of them
``watched``                  what a strategy makes of the replies does not pass through the Grid
``in_order``                 old servers ask a client a thread and sum up in the order of a set
===========================  ====================================================================
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, cast

from flwr.app import ArrayRecord, Message, RecordDict, UserConfig
from flwr.common.config import flatten_dict, get_project_config, parse_config_args
from flwr.compat.common import recorddict_compat as compat
from flwr.server import client_manager
from flwr.server import server as old
from flwr.serverapp.strategy import Strategy
from flwr.supercore.constant import DEFAULT_SIMULATION_CONFIG

from fedsweep.errors import ConfigError, TrialError, one_line

DEFAULT_NODES: int = DEFAULT_SIMULATION_CONFIG.num_supernodes
"""Clients of a simulation under Flower, where nobody says how many."""

OLD_METRICS = ("fitres.metrics", "evaluateres.metrics")
"""Records in which clients of the old kind reply their metrics; new ones use MetricRecords."""


# An app's folder


def app_settings(folder: Path) -> dict[str, Any]:
    """Return an app's ``pyproject.toml`` as Flower reads it.

    Raises
    ------
    ConfigError
        There is none, or Flower refuses it.
    """
    try:
        return dict(get_project_config(folder))
    except Exception as error:  # Flower and the parser raise what they like
        raise ConfigError(
            f"{folder} is no Flower app: {' '.join(str(error).split())}; name a folder whose "
            "pyproject.toml has a section [tool.flwr.app]"
        ) from error


def flat_config(nested: Mapping[str, Any]) -> UserConfig:
    """Return a run config with dotted keys, as apps see it."""
    return flatten_dict(dict(nested))


def app_files(folder: Path, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files that Flower would bundle of an app, by path, but for ``pyproject.toml``.

    Raises
    ------
    ConfigError
        Flower refuses to bundle them.
    """
    # They import the command line of Flower, which hosts do without.
    from flwr.cli.build import get_filtered_fab_paths
    from flwr.cli.utils import collect_files, filter_paths_for_publish

    root = folder.resolve()
    try:
        files = filter_paths_for_publish(collect_files(root))
        paths = sorted(get_filtered_fab_paths(files, dict(settings)))
        return {path: (root / path).read_bytes() for path in paths}
    except Exception as error:  # files that can't be read, patterns that fit nothing
        raise ConfigError(
            f"{folder} can't be bundled as a Flower app: {one_line(error)}"
        ) from error


def read_words(words: Sequence[str]) -> UserConfig:
    """Return the settings of ``--run-config``: words as ``flwr run`` takes them, or a TOML file.

    Raises
    ------
    ConfigError
        Flower can't read them.
    """
    try:
        return cast(UserConfig, parse_config_args(list(words) or None))
    except Exception as error:
        raise ConfigError(f"--run-config {' '.join(words)}: {one_line(error)}") from error


# What a server makes of the replies


class Watcher(Protocol):
    """Is told what a server does beside sending messages."""

    def aggregated(self, message_type: str, metrics: Mapping[str, Any]) -> None:
        """Take what the strategy made of a round's metrics of the clients."""

    def central(self, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Take what the server itself measured."""

    def model(self, arrays: ArrayRecord) -> None:
        """Take the global model that there is now."""


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Have a watcher see what strategies, new and old ones, return in this process meanwhile."""
    with ExitStack() as stack:
        put = partial(_instead, stack)
        put(Strategy, "start", _watched_start(Strategy.start, watcher))
        put(old.Server, "fit", _watched_fit(old.Server.fit, watcher))
        put(old.Server, "fit_round", _watched_fit_round(old.Server.fit_round, watcher))
        evaluate = _watched_evaluate_round(old.Server.evaluate_round, watcher)
        put(old.Server, "evaluate_round", evaluate)
        yield


def _instead(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute for as long as a stack is open."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    stack.callback(*((setattr, owner, name, before) if own else (delattr, owner, name)))


def _watched_start(start: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    takes = signature(start)

    @wraps(start)
    def watched_start(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        given = takes.bind(self, *args, **kwargs)
        central = given.arguments.get("evaluate_fn")

        def aggregate_train(number: int, replies: Any) -> Any:
            arrays, metrics = train(number, replies)
            if arrays is not None:
                watcher.model(arrays)
            watcher.aggregated("train", metrics or {})
            return arrays, metrics

        def aggregate_evaluate(number: int, replies: Any) -> Any:
            metrics = evaluate(number, replies)
            watcher.aggregated("evaluate", metrics or {})
            return metrics

        def evaluate_fn(number: int, arrays: ArrayRecord) -> Any:
            assert central is not None
            metrics = central(number, arrays)
            watcher.central(number, metrics or {})
            return metrics

        if central is not None:
            given.arguments["evaluate_fn"] = evaluate_fn
        train, evaluate = self.aggregate_train, self.aggregate_evaluate
        with ExitStack() as stack:
            _instead(stack, self, "aggregate_train", aggregate_train)
            _instead(stack, self, "aggregate_evaluate", aggregate_evaluate)
            return start(*given.args, **given.kwargs)

    return watched_start


def _watched_fit(fit: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    @wraps(fit)
    def watched_fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        central = self.strategy.evaluate

        def evaluate(server_round: int, parameters: Any) -> Any:
            found = central(server_round, parameters=parameters)
            if found is not None:
                watcher.central(server_round, {"loss": found[0], **found[1]})
            return found

        with ExitStack() as stack:
            _instead(stack, self.strategy, "evaluate", evaluate)
            return fit(self, *args, **kwargs)

    return watched_fit


def _watched_fit_round(fit_round: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    @wraps(fit_round)
    def watched_round(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = fit_round(self, *args, **kwargs)
        if found is not None:
            parameters, metrics, _ = found
            if parameters:
                watcher.model(compat.parameters_to_arrayrecord(parameters, keep_input=True))
            watcher.aggregated("train", metrics)
        return found

    return watched_round


def _watched_evaluate_round(evaluate: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    @wraps(evaluate)
    def watched_round(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = evaluate(self, *args, **kwargs)
        if found is not None:
            loss, metrics, _ = found
            told = {} if loss is None else {"loss": loss}
            watcher.aggregated("evaluate", told | metrics)
        return found

    return watched_round


# Servers of the old kind


@contextmanager
def in_order() -> Iterator[None]:
    """Have servers of the old kind ask all clients at once, and sum up in the order of asking.

    Flower's take a thread for each client and sum up what comes back in the order of a set, which
    is another one in each run.
    """
    fit = partial(
        _ask, "train", partial(compat.fitins_to_recorddict, keep_input=True),
        partial(compat.recorddict_to_fitres, keep_input=False),
    )  # fmt: skip
    evaluate = partial(
        _ask, "evaluate", partial(compat.evaluateins_to_recorddict, keep_input=True),
        compat.recorddict_to_evaluateres,
    )  # fmt: skip
    with ExitStack() as stack:
        _instead(stack, old, "fit_clients", fit)
        _instead(stack, old, "evaluate_clients", evaluate)
        _instead(stack, client_manager.SimpleClientManager, "wait_for", _there_or_never)
        yield


def _ask(
    message_type: str,
    written: Callable[[Any], RecordDict],
    read: Callable[[RecordDict], Any],
    client_instructions: Sequence[tuple[Any, Any]],
    max_workers: int | None,
    timeout: float | None,
    group_id: int,
) -> tuple[list[Any], list[Any]]:
    """Return the results and the failures of clients, in the order of their instructions."""
    del max_workers
    group = str(group_id) if group_id else ""
    messages = [
        Message(written(ins), client.node_id, message_type, ttl=timeout, group_id=group)
        for client, ins in client_instructions
    ]
    if not messages:
        return [], []
    grid = client_instructions[0][0].grid
    replies = {
        reply.metadata.reply_to_message_id: reply for reply in grid.send_and_receive(messages)
    }
    results: list[Any] = []
    failures: list[Any] = []
    for (client, _), message in zip(client_instructions, messages, strict=True):
        reply = replies.get(message.metadata.message_id)
        if reply is None or reply.has_error():
            why = "no reply" if reply is None else reply.error.reason
            failures.append(ValueError(f"client {client.node_id - 1}: {why}"))
            continue
        result = client, read(reply.content)
        (results if result[1].status.code.value == 0 else failures).append(result)
    return results, failures


def _there_or_never(self: Any, num_clients: int, timeout: int = 86400) -> bool:
    """Refuse at once where Flower's manager would wait a day for clients that never come."""
    del timeout
    if len(self) < num_clients:
        raise TrialError(
            f"the strategy waits for {num_clients} clients, and there are {len(self)}; raise "
            "num_clients, or lower the strategy's min_available_clients"
        )
    return True


def scalars_of(content: RecordDict) -> tuple[dict[str, float], list[str], float]:
    """Return a reply's numbers by name, the names of its lists, and its number of examples.

    Without a number of examples a reply counts as one.
    """
    found: dict[str, float] = {}
    lists: list[str] = []
    records = [*content.metric_records.values()]
    records += [content[name] for name in OLD_METRICS if name in content]  # type: ignore[misc]
    for record in records:
        for key, value in record.items():
            if isinstance(value, bool | int | float):
                found[key] = float(value)
            elif isinstance(value, list):
                lists.append(key)
    weight = 1.0
    for name in ("num-examples", "num_examples"):
        with suppress(KeyError):
            weight = found.pop(name)
    return found, lists, weight
