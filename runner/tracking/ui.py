"""MLflow's UI on a local store: where its charts are, and whether its port is to be had."""

import socket
from urllib.parse import quote, urlencode

from fedsweep.errors import RunnerError
from fedsweep.tracking.store import Store


def charts(store: Store, host: str, port: int) -> str:
    """Return the address of the charts of an experiment's runs."""
    shown = f"[{host}]" if ":" in host else "localhost" if host in ("0.0.0.0", "") else host
    page = f"#/experiments/{store.experiment_id}/runs"
    # Runs of sweeps hide those of their trials, and do so wherever runs are sorted by their time.
    words = {
        "workflowType": "machine_learning",
        "compareRunsMode": "CHART",
        "searchFilter": "tags.kind = 'trial'",
        "orderByKey": "metrics.`0_final/client_acc`",
        "orderByAsc": "false",
    }
    return f"http://{shown}:{port}/{page}?{urlencode(words, quote_via=quote)}"


def check_port(host: str, port: int) -> None:
    """Refuse a port that can't be listened on.

    Raises
    ------
    RunnerError
        Another program has it, or this user may not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "it is no port"
            raise RunnerError(
                f"--port {port} of {host} is not to be had ({why}); end what listens there, or "
                "name another one"
            ) from error
