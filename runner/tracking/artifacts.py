"""What a run leaves as files: tables as Parquet, figures as PNG; here they become bytes, to be sent in one call."""

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from runner.figures import split as splits
from runner.figures import trial as trials
from runner.figures.canvas import to_png
from runner.records import Columns, DataSummary, LoadSample, RoundRecord, TrialResult, TrialStarted
from runner.redaction import redact

if TYPE_CHECKING:
    from PIL import Image

_LOAD = [field.name for field in fields(LoadSample)]
_drawn: dict[str, dict[str, bytes]] = {}
_DRAWN_LIMIT = 16  # splits whose pictures are kept


def encode(files: Mapping[str, str | bytes | Figure]) -> dict[str, bytes]:
    """Return artifacts as bytes: texts in UTF-8, figures as PNG."""
    return {
        path: content.encode() if isinstance(content, str) else to_png(content)
        if isinstance(content, Figure) else content
        for path, content in files.items()
    }  # fmt: skip


def ui_images(files: Mapping[str, bytes], now_ms: int) -> dict[str, bytes]:
    """Return the PNG files under ``plots/`` once more as images of the UI's charts page."""
    from PIL import Image

    images: dict[str, bytes] = {}
    for path, content in files.items():
        if path.startswith("plots/") and path.endswith(".png"):
            key = path.removeprefix("plots/").removesuffix(".png")
            images |= ui_image(key, 0, now_ms, Image.open(io.BytesIO(content)).convert("RGB"))
    return images


def parts(record: RoundRecord) -> dict[str, bytes]:
    """Return a round's tables, each a part file of its own.

    A table is a folder (``clients.parquet/part-00003.parquet``) that pandas and pyarrow read as one, so a round is
    appended without writing any other again, and a round that is written twice takes the place of itself.
    """
    tables = {
        "clients": record.clients,
        "assignments": record.assignments,
        "load": {name: [getattr(row, name) for row in record.load] for name in _LOAD} if record.load else {},
    }
    return {
        f"{name}.parquet/part-{record.round:05d}.parquet": to_parquet(columns)
        for name, columns in tables.items()
        if columns and len(next(iter(columns.values())))
    }


def to_parquet(columns: Columns) -> bytes:
    """Return a table as one Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({name: list(values) for name, values in columns.items()}), sink)
    return bytes(sink.getvalue())


def split_table(data: DataSummary) -> bytes:
    """Return who holds what, for reports: a row per client with its known group and its examples of each class."""
    counts = {f"class_{name}": data.label_counts[:, i].tolist() for i, name in enumerate(data.class_names)}
    return to_parquet({"client": range(len(data.groups)), "group": data.groups.tolist(), **counts})


def cluster_image(record: RoundRecord, groups: np.ndarray, rounds: int, now_ms: int, first: bool) -> dict[str, bytes]:
    """Return a picture of a round's clusters for the UI's step slider, in some ten rounds of a trial.

    A row per known group, a square per client in the colour of its cluster, the server's with a white dot. Drawn as
    pixels, since a figure a round would cost more than the round, and named as ``MlflowClient.log_image`` names it.
    """
    every = max(1, rounds // 10)
    if not record.assignments or (record.round % every and record.round != rounds):
        return {}
    from PIL import Image

    shown = [(record.round, record.assignments)]
    if first:  # the slider starts at step 0: there it shows the known groups, which is what should be found
        client = record.assignments["client"]
        shown.append((0, {"client": client, "cluster": groups[np.asarray(client)], "server": [False] * len(client)}))
    return {
        path: content
        for step, rows in shown
        for path, content in ui_image(
            "clusters", step, now_ms if step else 0, Image.fromarray(trials.cluster_squares(rows, groups))
        ).items()
    }


def ui_image(key: str, step: int, now_ms: int, image: "Image.Image") -> dict[str, bytes]:
    """Return the files in which MLflow's UI looks for an image: itself and a thumbnail of MLflow's size."""
    name = f"images/{key}+step+{step}+timestamp+{now_ms}+{uuid.uuid5(uuid.NAMESPACE_OID, f'{key} {step}')}"
    small = image.copy()
    small.thumbnail((256, 256))
    files = {}
    for path, shown, kind in ((f"{name}.png", image, "PNG"), (f"{name}+compressed.webp", small, "WEBP")):
        buffer = io.BytesIO()
        shown.save(buffer, format=kind)
        files[path] = buffer.getvalue()
    return files


def dataset_fields(data: DataSummary) -> dict[str, str]:
    """Return what fills the UI's Dataset column: the data set, its split and its size."""
    split = " ".join(name for name in (data.dataset, data.partition, data.shift) if name != "none")
    profile = {"num_train": data.num_train, "num_test": data.num_test, "num_clients": len(data.label_counts)}
    return {
        "name": split,
        "digest": data.fingerprint[:36],
        "source_type": "local",
        "source": json.dumps({"uri": redact(data.source)}),
        "profile": json.dumps(profile | {"classes": list(data.class_names[:100])}),
    }


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
        "plots/label_heatmap.png": splits.label_heatmap(counts, data.groups, names, f"Labels per client: {split}"),
        "plots/label_bars.png": splits.label_bars(counts, data.groups, names, f"Labels per client: {split}"),
        "plots/class_counts.png": splits.class_counts(counts, names, f"Examples per class, all clients: {split}"),
    }
    title = f"Clients' labels against the global distribution: {split}"
    figures["plots/divergence.png"] = splits.divergences(counts, data.groups, title)
    for group, (images, labels) in sorted(data.examples.items()):
        title = f"{data.dataset}, group {group}" if len(data.examples) > 1 else data.dataset
        figures[f"plots/examples_group{group}.png"] = splits.example_grid(images, labels, names, title)
    return {path: to_png(figure) for path, figure in figures.items()}


def trial_figures(
    rounds: Sequence[Mapping[str, float]],
    clients: Sequence[Columns],
    assignments: Sequence[Columns],
    load: Sequence[LoadSample],
    first: TrialStarted | None,
    result: TrialResult | None,
) -> dict[str, bytes]:
    """Return the figures of a trial, by artifact path; what it did not produce is left out."""
    figures: dict[str, Figure] = {}
    if rounds:
        figures["plots/curves.png"] = trials.curves(pd.DataFrame(list(rounds)), _table(clients))
    assigned = _table(assignments)
    if assigned is not None:
        groups = dict(enumerate(map(int, first.data.groups))) if first is not None else None
        figures["plots/clusters.png"] = trials.cluster_map(assigned, groups)
    if load:
        figures["plots/load.png"] = trials.load_plot(pd.DataFrame([asdict(sample) for sample in load]))
    if result is not None and result.confusion is not None and first is not None:
        figures["confusion.png"] = trials.confusion_matrix(result.confusion, first.data.class_names)
    return {path: to_png(figure) for path, figure in figures.items()}


def _table(parts: Sequence[Columns]) -> pd.DataFrame | None:
    """Return the rows of all rounds as one table; None where there are none."""
    frames = [pd.DataFrame(dict(part)) for part in parts if part]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else None
