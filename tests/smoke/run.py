"""The smoke run: two clients through every real stage, and what it logged: ``make smoke``."""

import sys
import tempfile
import time
from pathlib import Path

ARTIFACTS = {
    "config.yaml", "clients.parquet", "assignments.parquet", "load.parquet", "confusion.png",
    "plots/curves.png", "plots/clusters.png", "plots/load.png", "plots/label_heatmap.png",
    "plots/label_bars.png", "plots/class_counts.png", "plots/examples_group0.png",
    "plots/examples_group1.png",
}  # fmt: skip
METRICS = {
    "1_global/acc", "1_global/loss", "2_clusters/ari", "2_clusters/c0_acc", "2_clusters/c1_acc",
    "2_clusters/c0_size", "3_clients/acc", "3_clients/acc_std", "3_clients/acc_p10",
    "3_clients/acc_min", "3_clients/train_loss", "4_comm/mb_down", "4_comm/mb_up",
    "4_comm/mb_to_servers", "5_time/round_s", "6_load/cpu_s",
}  # fmt: skip


def check(output: Path) -> str:
    """Read back what the smoke sweep stored in ``output``;
    return the trial's run id, or raise AssertionError.
    """
    import pandas as pd
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "fedsweep"]
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    [trial] = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.status for run in (parent, trial)] == ["FINISHED", "FINISHED"], (
        "both runs must be FINISHED"
    )

    for run in (parent, trial):
        assert run.data.tags["cluster"].startswith("1 node, "), run.data.tags.get("cluster")
    missing = METRICS - set(trial.data.metrics)
    assert not missing, f"metrics were not logged: {sorted(missing)}"
    for key in METRICS:
        steps = [metric.step for metric in client.get_metric_history(trial.info.run_id, key)]
        expected = [0, 1, 2] if key.startswith("1_global") else [1, 2]
        assert sorted(set(steps)) == sorted(steps), f"{key} was logged twice at a step: {steps}"
        assert set(steps) <= set(expected), f"{key} has steps {steps}"
        assert 2 in steps, f"{key} has no last round: {steps}"
    assert trial.data.metrics["2_clusters/ari"] == 1.0, "two clients of two groups are two clusters"
    assert trial.data.metrics["0_final/client_acc"] == trial.data.metrics["3_clients/acc"]

    root = Path(client.download_artifacts(trial.info.run_id, ""))
    lost = {
        name for name in ARTIFACTS if not (root / name).exists()
    }  # a table is a folder, one part file a round
    assert not lost, f"artifacts are missing: {sorted(lost)}"
    clients = pd.read_parquet(root / "clients.parquet")
    assert sorted(zip(clients["round"], clients["client"], strict=True)) == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert (clients[["cpu_s", "wall_s", "bytes_in", "bytes_out", "train_examples"]] > 0).all(
        axis=None
    )
    assert set(clients["host"]) <= {f"cpu-{i}" for i in range(64)}, (
        "clients must have run on Ray hosts"
    )
    assignments = pd.read_parquet(root / "assignments.parquet")
    assert assignments[assignments["round"] == 2]["server"].sum() == 2, (
        "each cluster must have one server"
    )
    assert (assignments[["load_cpu_s", "load_rss_mb", "load_node"]] >= 0).all(axis=None), (
        "the servers were chosen by load"
    )
    assert len(pd.read_parquet(root / "load.parquet")) >= 1
    report = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert {"report.md", "report.csv", "report.tex", "index.html"} <= report, (
        f"the sweep's run holds only {report}"
    )
    return str(trial.info.run_id)


def main() -> int:
    """Run the smoke sweep in a fresh folder and check it; return the exit status."""
    from tests.watched import watched

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedsweep-smoke-") as folder:
        status, late = watched(["sweep", "smoke", f"tracking.output={folder}"])
        if status == 0:
            assert not late, f"imported while threads work side by side: {late}"
            check(Path(folder))
            print(
                "smoke: every stage ran and what it logged is there "
                f"({time.monotonic() - started:.0f} s)"
            )
    return status


if __name__ == "__main__":
    sys.exit(main())
