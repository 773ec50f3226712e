"""What a run leaves as files: tables as Parquet, figures as PNG. All files of a step are logged in one call."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from runner import plots
from runner.divergence import divergence_plot
from runner.records import Columns, DataSummary, LoadSample, TrialResult, TrialStarted
from runner.tracking.store import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

File = str | bytes | Figure | pd.DataFrame
_drawn: dict[str, dict[str, bytes]] = {}
_DRAWN_LIMIT = 16  # splits whose pictures are kept


def log_files(client: "MlflowClient", run_id: str, files: Mapping[str, File]) -> None:
    """Log artifacts by their path in the run: a text, a PNG's bytes, a figure or a table."""
    if not files:
        return
    with tempfile.TemporaryDirectory(prefix="fedsweep-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, pd.DataFrame):
                content.to_parquet(path, index=False)
            elif isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            else:
                path.write_bytes(plots.to_png(content) if isinstance(content, Figure) else content)
        client.log_artifacts(run_id, folder)


def log_dataset(client: "MlflowClient", run_id: str, data: DataSummary) -> None:
    """Fill the UI's Dataset column with the data set, its split and its size."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    split = " ".join(name for name in (data.dataset, data.partition, data.shift) if name != "none")
    profile = {"num_train": data.num_train, "num_test": data.num_test, "num_clients": len(data.label_counts)}
    dataset = Dataset(
        name=split,
        digest=data.fingerprint[:36],
        source_type="local",
        source=json.dumps({"uri": redact(data.source)}),
        profile=json.dumps(profile | {"classes": list(data.class_names[:100])}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def data_figures(data: DataSummary) -> dict[str, bytes]:
    """Return the pictures of a data set under a partitioning.

    The trials of a sweep share their splits, and drawing costs far more than logging, so drawn pictures are kept.
    """
    key = sha256(repr((data.fingerprint, data.partition, data.shift, sorted(data.examples))).encode())
    for array in (data.label_counts, data.groups, *(part for pair in data.examples.values() for part in pair)):
        key.update(np.ascontiguousarray(array).tobytes())
    name = key.hexdigest()
    if name not in _drawn:
        if len(_drawn) >= _DRAWN_LIMIT:
            _drawn.pop(next(iter(_drawn)))
        _drawn[name] = _draw(data)
    return _drawn[name]


def _draw(data: DataSummary) -> dict[str, bytes]:
    split = ", ".join(part for part in (data.dataset, data.partition, data.shift) if part != "none")
    counts, names = data.label_counts, data.class_names
    figures = {
        "plots/label_heatmap.png": plots.label_heatmap(counts, data.groups, names, f"Labels per client: {split}"),
        "plots/label_bars.png": plots.label_bars(counts, data.groups, names, f"Labels per client: {split}"),
        "plots/class_counts.png": plots.class_counts(counts, names, f"Examples per class, all clients: {split}"),
    }
    title = f"Clients' labels against the global distribution: {split}"
    figures["plots/divergence.png"] = divergence_plot(counts, data.groups, title)
    for group, (images, labels) in sorted(data.examples.items()):
        title = f"{data.dataset}, group {group}" if len(data.examples) > 1 else data.dataset
        figures[f"plots/examples_group{group}.png"] = plots.example_grid(images, labels, names, title)
    return {path: plots.to_png(figure) for path, figure in figures.items()}


def trial_files(
    rounds: Sequence[Mapping[str, float]],
    clients: Sequence[Columns],
    assignments: Sequence[Columns],
    load: Sequence[LoadSample],
    first: TrialStarted | None,
    result: TrialResult | None,
) -> dict[str, Any]:
    """Return the tables and figures of a trial, by artifact path; what it did not produce is left out."""
    files: dict[str, Any] = {}
    clients_table, assignments_table = _table(clients), _table(assignments)
    if clients_table is not None:
        files["clients.parquet"] = clients_table
    if rounds:
        files["plots/curves.png"] = plots.curves(pd.DataFrame(list(rounds)), clients_table)
    if assignments_table is not None:
        files["assignments.parquet"] = assignments_table
        groups = dict(enumerate(map(int, first.data.groups))) if first is not None else None
        files["plots/clusters.png"] = plots.cluster_map(assignments_table, groups)
    if load:
        table = pd.DataFrame([asdict(sample) for sample in load])
        files["load.parquet"] = table
        files["plots/load.png"] = plots.load_plot(table)
    if result is not None and result.confusion is not None and first is not None:
        files["confusion.png"] = plots.confusion_matrix(result.confusion, first.data.class_names)
    return files


def _table(parts: Sequence[Columns]) -> pd.DataFrame | None:
    """Return the rows of all rounds as one table; None where there are none."""
    frames = [pd.DataFrame(dict(part)) for part in parts if part]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else None
