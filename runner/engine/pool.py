"""The client hosts of a sweep: long-lived Ray actors with resource specifications, shared by every trial."""

import logging
import os
import socket
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray

from runner.config import HostGroup, ResourcesConfig
from runner.engine.executors import Host
from runner.engine.host import ClientHost
from runner.errors import ResourceError

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
}

CODE = ("runner", "strategies", "models")
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in the driver of a submitted job, whose nodes have the job's working directory, code included."""


def _get(refs: list[Any]) -> list[Any]:
    """Resolve those entries that are object references, in one call."""
    wanted = [ref for ref in refs if isinstance(ref, ray.ObjectRef)]
    values = iter(ray.get(wanted) if wanted else [])
    return [next(values) if isinstance(ref, ray.ObjectRef) else ref for ref in refs]


class _RayClientHost(ClientHost):
    """A ClientHost that resolves Ray references."""

    def __init__(self, name: str) -> None:
        super().__init__(name, ray.get_runtime_context().get_node_id()[:8], _get)

    def warm(self) -> None:
        """Import what the built-in ClientApp needs: a host pays for it when it starts, not in its first chunk."""
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
    code = _code() if address and JOB not in os.environ else {}
    local = {"include_dashboard": False, "num_cpus": num_cpus}
    warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
    try:
        # Ray's own processes inherit the environment, so the workers that it starts ahead of time fit the hosts
        with nullcontext() if address else _environment(env):
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                namespace="fedsweep",
                **({"runtime_env": {"env_vars": env, **code}} if address else local),
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


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


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
    """Starts the hosts that a configuration asks for, after checking that the cluster has room for them."""

    def __init__(self, config: ResourcesConfig) -> None:
        counts = plan(config.hosts, [dict(n["Resources"]) for n in ray.nodes() if n["Alive"]])
        self.hosts: list[Host] = []
        for group, spec in config.hosts.items():
            actor = ray.remote(max_restarts=-1, max_task_retries=0)(_RayClientHost)
            for number in range(counts[group]):
                name = f"{group}-{number}"
                handle = actor.options(
                    num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, resources=dict(spec.resources)
                ).remote(name)
                self.hosts.append(Host(name, handle, spec.num_cpus, spec.num_gpus))

    def describe(self) -> str:
        """Return a line such as ``1 nodes, 2 CPUs, 0 GPUs, Ray 2.55.1; hosts: 2 cpu``."""
        nodes, total = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
        groups = Counter(host.name.rpartition("-")[0] for host in self.hosts)
        cluster = f"{nodes} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs, Ray {ray.__version__}"
        return f"{cluster}; hosts: {', '.join(f'{count} {name}' for name, count in groups.items())}"

    def warm(self) -> None:
        """Have every host make ready for the built-in ClientApp, and do not wait for it."""
        for host in self.hosts:
            host.actor.warm.remote()

    def wait(self) -> None:
        """Return when every host is up, and warm where that was asked for."""
        ray.get([host.actor.ping.remote() for host in self.hosts])

    def close(self) -> None:
        """End every host, wherever it is."""
        for host in self.hosts:
            ray.kill(host.actor, no_restart=True)


def plan(groups: dict[str, HostGroup], nodes: list[dict[str, float]]) -> dict[str, int]:
    """Return how many hosts of each group fit on the nodes, in the order of the groups.

    Raises
    ------
    ResourceError
        Where a given count does not fit, or ``auto`` finds no room for one host.
    """
    free = [dict(node) for node in nodes]
    counts = {}
    for name, spec in groups.items():
        need = {"CPU": spec.num_cpus, "GPU": spec.num_gpus, **spec.resources}
        need = {key: amount for key, amount in need.items() if amount > 0}
        wanted = spec.count if isinstance(spec.count, int) else None
        limit = wanted if wanted is not None else (10_000 if need else len(nodes))
        counts[name] = sum(1 for _ in range(limit) if _place(need, free))
        if counts[name] < (wanted or 1):
            text = " ".join(f"{key}={amount:g}" for key, amount in need.items())
            has = {key: sum(node.get(key, 0.0) for node in nodes) for key in need}
            raise ResourceError(
                f"resources.hosts.{name} asks for {wanted or 'at least 1'} host(s) with {text} each, but the "
                f"cluster has "
                f"{' '.join(f'{key}={amount:g}' for key, amount in has.items())}; lower count, num_cpus or num_gpus"
            )
    return counts


def _place(need: dict[str, float], free: list[dict[str, float]]) -> bool:
    """Take a host's resources from the first node that has them."""
    for node in free:
        if all(node.get(key, 0.0) + 1e-9 >= amount for key, amount in need.items()):
            for key, amount in need.items():
                node[key] -= amount
            return True
    return False
