"""The client hosts of a sweep: long-lived Ray actors with resource specifications, shared by every trial."""

import logging
import os
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from runner.config import HostGroup, ResourcesConfig
from runner.engine.executors import Host
from runner.engine.host import ClientHost
from runner.engine.wire import out_of_band
from runner.environ import environ
from runner.errors import ResourceError
from runner.imports import lasting

TELEMETRY_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
HOST_ENV = {
    "OMP_NUM_THREADS": "1",  # a host's threads are set per task; a second pool of them would only compete
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a host without a GPU share sees no GPU
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS asks for to be deterministic
    # glibc: a step's tensors take the memory of the step before instead of fresh pages, an eighth of simple_cnn's time
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

RAY_ENV = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}
"""Of a Ray that we start: the processes of trials wait for the next trial, where Ray would end them after a second."""

CODE = ("runner", "strategies", "models")
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in the driver of a submitted job, whose nodes have the job's working directory, code included."""

NODES_S = 2.0
"""Seconds between two looks for nodes that joined or left."""


def _get(refs: list[Any]) -> list[Any]:
    """Resolve those entries that are object references, in one call."""
    wanted = [ref for ref in refs if isinstance(ref, ray.ObjectRef)]
    values = iter(ray.get(wanted) if wanted else [])
    return [next(values) if isinstance(ref, ray.ObjectRef) else ref for ref in refs]


class _RayClientHost(ClientHost):
    """A ClientHost that resolves Ray references."""

    def __init__(self, name: str) -> None:
        out_of_band()
        super().__init__(name, ray.get_runtime_context().get_node_id()[:8], _get)
        self._turn = threading.Lock()

    def run(self, *args: Any) -> tuple[Any, ...]:
        """Run a chunk as :class:`ClientHost` does, one at a time.

        Ray brings the next one to the actor's other thread meanwhile, so that it begins while this one's results go to
        the object store: milliseconds a chunk.
        """
        with self._turn:
            if ray.get_runtime_context().is_canceled():  # called back while it waited here
                raise TaskCancelledError
            return super().run(*args)

    def warm(self) -> None:
        """Import what the built-in ClientApp needs: a host pays for it when it starts, not in its first chunk."""
        with lasting():
            import runner.client.app  # noqa: F401


@contextmanager
def ray_session(address: str | None, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine (with so many cores) for as long as the context lasts."""
    os.environ.update(TELEMETRY_OFF)
    address = address or os.environ.get("RAY_ADDRESS") or None
    if ray.is_initialized():
        yield
        return
    if address and address != "auto":
        _reach(address)
    env = TELEMETRY_OFF | HOST_ENV
    if address:
        code = {} if JOB in os.environ else _code()
        options: dict[str, Any] = {"runtime_env": {"env_vars": env, **code}}
    else:
        options = {"include_dashboard": False, "num_cpus": num_cpus}
    warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
    try:
        # Ray's own processes inherit the environment, so the workers that it starts ahead of time fit the hosts
        with nullcontext() if address else environ(env | RAY_ENV):
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                namespace="fedsweep",
                **options,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or "this machine"
        raise ResourceError(f"no Ray cluster can be had at '{where}': {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _code() -> dict[str, Any]:
    """Return the part of a runtime environment that brings this code to every node of a cluster, as it is here."""
    root = Path(__file__).resolve().parents[2]
    return {"py_modules": [str(root / name) for name in CODE], "excludes": ["__pycache__"]}


def _reach(address: str) -> None:
    """Refuse an address that nobody answers at: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at '{address}' ({error}); give HOST:PORT of its head node, auto, or nothing"
        ) from error


class HostPool:
    """Starts the hosts that a configuration asks for, after checking that the cluster has room for them.

    Groups of a fixed count keep it: Ray starts a lost host again, wherever there is room. Groups of ``count=auto``
    follow the cluster: a node that joins is given the hosts that fit, those of a node that left are forgotten.

    Attributes
    ----------
    hosts : list of Host
        The hosts there are now; the same list as long as the pool lives.
    """

    def __init__(self, config: ResourcesConfig) -> None:
        self.hosts: list[Host] = []
        self._warming: list[Any] = []
        self._config, self._id = config, f"hosts-{uuid4().hex[:8]}"
        self._numbers = {group: count() for group in config.hosts}
        self._nodes = _nodes()
        for group, places in plan(config.hosts, self._nodes).items():
            for node in places:
                self._add(group, node)
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="host-pool", daemon=True)
        if any(spec.count == "auto" for spec in config.hosts.values()):
            self._watcher.start()

    def _add(self, group: str, node: str) -> None:
        spec, name = self._config.hosts[group], f"{group}-{next(self._numbers[group])}"
        stays = spec.count == "auto"
        actor = ray.remote(max_restarts=-1, max_task_retries=0)(_RayClientHost).options(
            name=f"{self._id}/{name}",
            max_concurrency=2,
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            resources=dict(spec.resources),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=not stays),
        )
        self.hosts.append(Host(name, actor.remote(name), self._id, node if stays else ""))

    def _watch(self) -> None:
        while not self._closed.wait(NODES_S):
            with suppress(RayError):  # the cluster's head does not answer: the next look may find it again
                self.follow()

    def follow(self) -> None:
        """Start hosts on nodes that joined; forget those of nodes that left."""
        nodes = _nodes()
        if nodes.keys() == self._nodes.keys():
            return
        self._nodes = nodes
        for host in [host for host in self.hosts if host.node and host.node not in nodes]:
            self.hosts.remove(host)  # its actor ended with its node
        try:
            wanted = plan(self._config.hosts, nodes)
        except ResourceError:  # no room at present for a group: trials say so, where nobody is left to run them
            return
        for group, places in wanted.items():
            if self._config.hosts[group].count == "auto":
                have = Counter(host.node for host in self.hosts if host.name.rpartition("-")[0] == group)
                for node in (Counter(places) - have).elements():
                    self._add(group, node)
                    self.hosts[-1].actor.warm.remote()

    def describe(self) -> str:
        """Return a line such as ``1 nodes, 2 CPUs, 0 GPUs, Ray 2.55.1; hosts: 2 cpu``."""
        nodes, total = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
        groups = Counter(host.name.rpartition("-")[0] for host in self.hosts)
        cluster = f"{nodes} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs, Ray {ray.__version__}"
        return f"{cluster}; hosts: {', '.join(f'{count} {name}' for name, count in groups.items())}"

    def warm(self) -> None:
        """Have every host make ready for the built-in ClientApp, and do not wait for it."""
        self._warming = [host.actor.warm.remote() for host in self.hosts]

    def wait(self) -> None:
        """Return when every host is up, and warm where that was asked for."""
        ray.get([host.actor.ping.remote() for host in self.hosts] + self._warming)
        self._warming.clear()

    def close(self) -> None:
        """End every host, wherever it is."""
        self._closed.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for host in self.hosts:
            ray.kill(host.actor, no_restart=True)


def _nodes() -> dict[str, dict[str, float]]:
    """Return the resources of each live node, by its id."""
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def plan(groups: Mapping[str, HostGroup], nodes: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Return the node of each host of each group: ``auto`` fills the nodes, a given count is spread over them.

    Raises
    ------
    ResourceError
        Where a given count does not fit, or ``auto`` finds no room for one host.
    """
    free = {node: dict(resources) for node, resources in nodes.items()}
    places: dict[str, list[str]] = {}
    for name, spec in groups.items():
        need = {"CPU": spec.num_cpus, "GPU": spec.num_gpus, **spec.resources}
        need = {key: amount for key, amount in need.items() if amount > 0}
        wanted = spec.count if isinstance(spec.count, int) else None
        limit = wanted if wanted is not None else (10_000 if need else len(nodes))
        places[name] = []
        while len(places[name]) < limit:
            fits = [
                node
                for node, has in free.items()
                if all(has.get(k, 0.0) + 1e-9 >= amount for k, amount in need.items())
            ]
            if not fits:
                break
            used = Counter(places[name])
            kinds = {node: sum(not key.startswith("node:") for key in nodes[node]) for node in fits}
            # what a host does not need, such as a GPU, is left to those that do
            node = min(fits, key=lambda node: (used[node] if wanted or not need else 0, kinds[node]))
            for key, amount in need.items():
                free[node][key] -= amount
            places[name].append(node)
        if len(places[name]) < (wanted or 1):
            text = " ".join(f"{key}={amount:g}" for key, amount in need.items())
            has = {key: sum(node.get(key, 0.0) for node in nodes.values()) for key in need}
            raise ResourceError(
                f"resources.hosts.{name} asks for {wanted or 'at least 1'} host(s) with {text} each, but the "
                f"cluster has "
                f"{' '.join(f'{key}={amount:g}' for key, amount in has.items())}; lower count, num_cpus or num_gpus"
            )
    return places
