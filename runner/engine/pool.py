"""The client hosts of a sweep: long-lived Ray actors with resources, shared by every trial."""

import gc
import logging
import os
import secrets
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError, RayError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.executors import Host
from fedsweep.engine.host import ClientHost
from fedsweep.engine.leftovers import SESSION, session_folder
from fedsweep.engine.load import end_processes
from fedsweep.engine.wire import out_of_band
from fedsweep.environ import environ, keep, variable
from fedsweep.errors import EngineLost, ResourceError
from fedsweep.imports import lasting
from fedsweep.output import amount
from fedsweep.places import lay_out

TELEMETRY_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
HOST_ENV = {
    "OMP_NUM_THREADS": "1",  # a host's threads are set per task; a second pool would compete
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a host without a GPU share sees no GPU
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS asks for to be deterministic
    # glibc: a step's tensors take the memory of the step before instead of fresh pages, an eighth
    # of simple_cnn's time
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

RAY_ENV = {
    # the processes of trials wait for the next trial, where Ray would end them after a second
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Ray's own is 15: beside other people's work a host would get a thirtieth of their share
    "RAY_worker_niceness": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""Of a Ray that we start."""

_log = logging.getLogger("fedsweep.engine")
_raylet: Any = ray._raylet  # compiled, without types

NODES_S = 2.0
"""Seconds between two looks for nodes that joined or left."""
SAID_S = 15.0
"""Seconds without a host that is awaited after which that is said."""


def _get(refs: Sequence[object]) -> list[Any]:
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

    def run(self, *args: Any) -> tuple[object, ...]:
        """Run a chunk as :class:`ClientHost` does, one at a time.

        Ray brings the next one to the actor's other thread meanwhile, so that it begins while this
        one's results go to the object store: milliseconds a chunk.
        """
        with self._turn:
            if ray.get_runtime_context().is_canceled():  # called back while it waited here
                raise TaskCancelledError
            return super().run(*args)

    def warm(self, module: str) -> None:
        """Import what a ClientApp needs: the start pays for it, not the first chunk.

        A chunk that comes meanwhile waits: threads that import side by side see half of a module.
        """
        with self._turn, lasting():
            import_module(module)


@contextmanager
def ray_session(address: str | None, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine, for as long as the context lasts.

    A Ray that is started here listens on loopback alone and answers nobody who lacks its token,
    which is new for each session, in the environment of its processes and nowhere else.

    Parameters
    ----------
    address : str or None
        ``HOST:PORT`` of a cluster's head node, ``auto``, or ``local`` to start Ray here; None is
        what ``RAY_ADDRESS`` says, or else ``local``.
    num_cpus : int or None
        Cores of the Ray that is started here; None: all.

    Raises
    ------
    ResourceError
        Nobody answers at the address, or refuses this driver.
    EngineLost
        Ray did not come up on this machine; another try may help.
    """
    keep(TELEMETRY_OFF)
    if ray.is_initialized():
        yield
        return
    named = "resources.address" if address else "RAY_ADDRESS"
    address = address or variable("RAY_ADDRESS") or "local"
    warnings.filterwarnings(
        "ignore", message="Tip: In future versions of Ray", category=FutureWarning
    )
    with _here(num_cpus) if address == "local" else _cluster(address, named):
        yield


@contextmanager
def _here(num_cpus: int | None) -> Iterator[None]:
    """Start Ray on this machine, for this process and its children alone."""
    with session_folder() as folder:
        # Ray's own processes inherit the environment: workers that it starts ahead fit the hosts
        env = TELEMETRY_OFF | HOST_ENV | RAY_ENV | {SESSION: str(folder)}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # workers look into the folder that the driver was started in: a folder of our name there
        # must not be taken for us
        places = [str(lay_out(folder / "code").parent), variable("PYTHONPATH")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        try:
            with environ(env, without=("RAY_AUTH_TOKEN_PATH",)), _loopback():
                _read_token()
                _start_ray(num_cpus, folder)
            yield
        finally:
            _shut_ray_down()
            _read_token()  # what this process may connect to next has another one, or none
            end_processes(SESSION, str(folder))


def _start_ray(num_cpus: int | None, folder: Path) -> None:
    try:
        _init("local", include_dashboard=False, num_cpus=num_cpus, _temp_dir=str(folder / "r"))
    except Exception as error:  # each of Ray's processes has errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineLost(f"Ray can't be started on this machine: {reason}") from error


@contextmanager
def _cluster(address: str, named: str) -> Iterator[None]:
    """Connect to a cluster: with a token wherever one can be found."""
    if address != "auto":
        _reach(address, named)
    _read_token()
    has_token = _raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    mode = variable("RAY_AUTH_MODE") or ("token" if has_token else "disabled")
    try:
        with environ({"RAY_AUTH_MODE": mode}), _code() as code:
            _read_token()
            _init(address, runtime_env={"env_vars": TELEMETRY_OFF | HOST_ENV, **code})
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        told = error.__cause__ if isinstance(error.__cause__, AuthenticationError) else error
        reason = str(told).splitlines()[0]
        raise ResourceError(f"no Ray cluster can be had at {named}={address}: {reason}") from error
    if mode != "token":
        _log.warning(
            "the Ray cluster at %s asks for no token: whoever reaches its ports can run code on "
            "it; docs/clusters.md says how it gets one",
            address,
        )
    try:
        yield
    finally:
        _shut_ray_down()


def _init(address: str, **options: Any) -> None:
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        namespace="fedsweep",
        **options,
    )


def _shut_ray_down() -> None:
    """Shut Ray down while nobody collects garbage.

    A stream of a trial's events that is garbage tells Ray's worker so when it is collected, by
    whatever thread that happens in. Between the worker's end and the moment at which Ray forgets
    it, Ray's code ends this process for that: "The core worker has already been shutdown".
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _read_token() -> None:
    """Have Ray read again from the environment whether it needs a token, and which."""
    _raylet.AuthenticationTokenLoader.instance().reset_cache()
    _raylet.Config.initialize("")


@contextmanager
def _loopback() -> Iterator[None]:
    """Have a node that is started meanwhile take 127.0.0.1 as its address, even on macOS.

    All of Ray's servers on it listen on that address alone then. It is no use to tell ``ray.init``
    ``_node_ip_address="127.0.0.1"``: Ray puts the machine's own address in its place.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def lost() -> bool:
    """Return whether the Ray that this process started has lost its raylet or its GCS.

    Neither comes back. Nothing may be put into the object store then: it would abort this process.
    """
    node = ray._private.worker._global_node
    if node is None or not node.head:
        return False
    return any(kind in ("raylet", "gcs_server") for kind, _ in node.dead_processes())


@contextmanager
def _code() -> Iterator[dict[str, list[str]]]:
    """Give the part of a runtime environment that brings this code to every node, as it is here."""
    with TemporaryDirectory() as folder:
        yield {"py_modules": [str(lay_out(Path(folder)))], "excludes": ["__pycache__"]}


def _reach(address: str, named: str) -> None:
    """Refuse an address that nobody answers at: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 2**16:
            raise ValueError("it is not HOST:PORT")  # the system takes ports modulo 65536
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        mend = "unset it, or set it to" if named == "RAY_ADDRESS" else "give"
        raise ResourceError(
            f"no Ray cluster answers at {named}={address} ({error}); {mend} HOST:PORT of its head "
            "node, auto, or local"
        ) from error


class HostPool:
    """Starts the hosts that a configuration asks for, once it knows that the cluster has room.

    Groups of a fixed count keep it: Ray starts a lost host again, wherever there is room. Groups of
    ``count=auto`` follow the cluster: a node that joins is given the hosts that fit, those of a
    node that left are forgotten.

    Parameters
    ----------
    config : ResourcesConfig
        Which hosts.
    say : callable
        Tells the user, in a line, what is waited for.

    Attributes
    ----------
    hosts : list of Host
        The hosts there are now; the same list as long as the pool lives.
    """

    def __init__(self, config: ResourcesConfig, say: Callable[[str], None] = _log.warning) -> None:
        self._say = say
        self.hosts: list[Host] = []
        self._warming: list[ray.ObjectRef] = []
        self._module = ""
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
            with suppress(
                RayError
            ):  # the cluster's head does not answer: the next look may find it again
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
        except (
            ResourceError
        ):  # no room at present for a group: trials say so, where nobody is left to run them
            return
        for group, places in wanted.items():
            if self._config.hosts[group].count == "auto":
                have = Counter(
                    host.node for host in self.hosts if host.name.rpartition("-")[0] == group
                )
                for node in (Counter(places) - have).elements():
                    self._add(group, node)
                    if self._module:
                        self.hosts[-1].actor.warm.remote(self._module)

    def describe(self) -> str:
        """Return a line such as ``1 node, 2 CPUs, 0 GPUs, Ray 2.55.1; hosts: 2 cpu``."""
        nodes, total = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
        groups = Counter(host.name.rpartition("-")[0] for host in self.hosts)
        cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
        cluster = f"{amount(nodes, 'node')}, {cpus:g} CPUs, {gpus:g} GPUs, Ray {ray.__version__}"
        return f"{cluster}; hosts: {', '.join(f'{count} {name}' for name, count in groups.items())}"

    def warm(self, module: str) -> None:
        """Have every host import the module of a ClientApp, and do not wait for it."""
        self._module = module
        self._warming = [
            host.actor.warm.options(max_task_retries=-1).remote(module) for host in self.hosts
        ]

    def wait(self) -> None:
        """Return when every host is up, and warm where that was asked for.

        A host that dies meanwhile is awaited again: Ray starts it once more. One that others leave
        no room for is awaited, too, and that is said.

        Raises
        ------
        EngineLost
            Ray's processes on this machine died.
        """
        calls = [host.actor.ping for host in self.hosts]
        pings = [call.options(max_task_retries=-1).remote() for call in calls]
        waits = refs = [*self._warming, *pings]
        told = time.monotonic()
        while waits:
            _, waits = ray.wait(waits, num_returns=len(waits), timeout=1.0, fetch_local=False)
            if lost():
                raise EngineLost("Ray's processes on this machine died")
            if time.monotonic() - told > SAID_S and waits:
                told = time.monotonic()
                self._say(self._awaited(sum(ping in waits for ping in pings)))
        ray.get(refs)
        self._warming.clear()

    def _awaited(self, count: int) -> str:
        """Say how many hosts are not up, and what room there is for them."""
        total, free = ray.cluster_resources(), ray.available_resources()
        room = ", ".join(
            f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")
        )
        return (
            f"waiting for {count} of {len(self.hosts)} hosts: free are {room}; others on this "
            "cluster may hold the rest"
        )

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


def plan(
    groups: Mapping[str, HostGroup], nodes: Mapping[str, Mapping[str, float]]
) -> dict[str, list[str]]:
    """Return the node of each host of each group: ``auto`` fills nodes, counts are spread.

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
            fits = [node for node, has in free.items() if _has_room(has, need)]
            if not fits:
                break
            used = Counter(places[name])
            kinds = {node: sum(not key.startswith("node:") for key in nodes[node]) for node in fits}
            # what a host does not need, such as a GPU, is left to those that do
            node = min(
                fits, key=lambda node: (used[node] if wanted or not need else 0, kinds[node])
            )
            for key, units in need.items():
                free[node][key] -= units
            places[name].append(node)
        if len(places[name]) < (wanted or 1):
            raise _no_room(name, wanted, need, nodes)
    return places


def _has_room(has: Mapping[str, float], need: Mapping[str, float]) -> bool:
    return all(has.get(key, 0.0) + 1e-9 >= amount for key, amount in need.items())


def _no_room(
    name: str,
    wanted: int | None,
    need: Mapping[str, float],
    nodes: Mapping[str, Mapping[str, float]],
) -> ResourceError:
    text = " ".join(f"{key}={amount:g}" for key, amount in need.items())
    has = {key: sum(node.get(key, 0.0) for node in nodes.values()) for key in need}
    return ResourceError(
        f"resources.hosts.{name} asks for {wanted or 'at least 1'} host(s) "
        f"with {text} each, but the cluster has "
        f"{' '.join(f'{key}={amount:g}' for key, amount in has.items())}; lower count, "
        "num_cpus or num_gpus"
    )
