"""Where MLflow's UI shows what is ours, and a port that is not to be had."""

import socket
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from fedsweep.errors import RunnerError
from fedsweep.redaction import redact
from fedsweep.tracking.ui import charts, check_port


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost"), ("::1", "[::1]")]
)
def test_the_address_leads_to_the_charts_of_the_trials(host, shown):
    address = charts(SimpleNamespace(experiment_id="7"), host, 5000)
    assert redact(address) == address  # what is printed leads there, too
    page = urlsplit(address)
    assert page.netloc == f"{shown}:5000"
    path, _, words = page.fragment.partition("?")
    assert path == "/experiments/7/runs"
    assert parse_qs(words) == {
        "workflowType": ["machine_learning"],
        "compareRunsMode": ["CHART"],
        "searchFilter": ["tags.kind = 'trial'"],
        "orderByKey": ["metrics.`0_final/client_acc`"],
        "orderByAsc": ["false"],
    }


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunnerError, match=f"--port {port} of 127.0.0.1 is not to be had"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(RunnerError, match="--port 70000"):
        check_port("127.0.0.1", 70000)
