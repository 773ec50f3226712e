"""A sweep as a submitted job: the job server uploads this folder, and the driver runs on the cluster.

Needs what `ray[default]` adds to Ray, which a head node has and our environment has not: skipped where it is missing.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("aiohttp_cors", "opencensus", "prometheus_client") if not importlib.util.find_spec(name)]

SCRIPT = """
import os, sys, time
os.environ |= {"RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "100", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120"}
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from tests.tracking.conftest import free_port

root, out = sys.argv[1:]
port = free_port()
head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": True, "dashboard_port": port}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    client = JobSubmissionClient(f"http://127.0.0.1:{port}")
    words = "num_clients=2 rounds=2 model=logreg strategy=fedavg shift=none partition=iid seed=0 tracking.figures=none"
    job = client.submit_job(
        entrypoint=f"{sys.executable} -m runner sweep default {words} tracking.output={out}",
        runtime_env={"working_dir": root, "excludes": [".git", ".venv", ".venv-bench", "outputs", "docs", "tests"]},
    )
    deadline = time.monotonic() + 120
    while client.get_job_status(job) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.5)
    print(client.get_job_logs(job))
    assert client.get_job_status(job) == JobStatus.SUCCEEDED
    store = MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = store.search_runs([store.get_experiment_by_name("fedsweep").experiment_id], "tags.kind = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    print("JOB OK")
finally:
    cluster.shutdown()
"""


@pytest.mark.skipif(bool(MISSING), reason=f"ray[default] is not installed (no {', '.join(MISSING)})")
def test_a_sweep_is_submitted_as_a_job(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "JOB OK" in run.stdout
    assert "[1/1] shift=none partition=iid seed=0: FINISHED" in run.stdout
