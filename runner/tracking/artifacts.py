"""What a run leaves as files: tables as Parquet, figures as PNG;
here they become bytes, to be sent in one call.
"""

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from cachetools import LRUCache

from fedsweep.catalog import CATALOG
from fedsweep.escape import shortened, storable
from fedsweep.figures import split as splits
from fedsweep.figures import trial as trials
from fedsweep.figures.canvas import Extras, new_layouts
from fedsweep.figures.examples import SHOWN
from fedsweep.figures.timeline import timeline
from fedsweep.records import (
    Columns,
    DataSummary,
    LoadSample,
    RoundRecord,
    TrialResult,
)
from fedsweep.redaction import redact
from fedsweep.tracking.tables import to_parquet

if TYPE_CHECKING:
    from PIL import Image

_SPLITS = 16  # whose pictures are kept


def ui_images(files: Mapping[str, bytes], now_ms: int) -> Extras:
    """Return the PNG files under ``plots/`` once more as images of the UI's charts page."""

    def image(key: str, content: bytes) -> dict[str, bytes]:
        from PIL import Image

        return ui_image(key, 0, now_ms, Image.open(io.BytesIO(content)).convert("RGB"))

    images = Extras()
    for path, content in files.items():
        if path.startswith("plots/") and path.endswith(".png"):
            key = path.removeprefix("plots/").removesuffix(".png")
            images.add(f"images/{key}", partial(image, key, content))
    return images


def split_table(data: DataSummary) -> bytes:
    """Return who holds what: a row per client, with its known group and examples of each class."""
    counts = {
        f"class_{name}": data.label_counts[:, i].tolist() for i, name in enumerate(data.class_names)
    }
    return to_parquet({"client": range(len(data.groups)), "group": data.groups.tolist(), **counts})


def class_table(confusion: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Return how each class fares: a row each, of the clients' models on the central test set.

    Parameters
    ----------
    confusion : (classes, classes) int
        True x predicted. A class without examples has no accuracy, one that is never predicted no
        precision: nan.
    """
    hits, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        accuracy, precision = hits / true, hits / predicted
    return to_parquet(
        {
            "class": [storable(name) for name in class_names],
            "examples": true.tolist(),
            "predicted": predicted.tolist(),
            "hits": hits.tolist(),
            "accuracy": accuracy.tolist(),
            "precision": precision.tolist(),
        }
    )


def cluster_image(
    record: RoundRecord, groups: np.ndarray, rounds: int, now_ms: int, first: bool
) -> Extras:
    """Return a picture of a round's clusters for the UI's step slider, in some ten rounds.

    A row per known group, a square per client in the colour of its cluster, the server's with a
    white dot. Drawn as pixels, since a figure a round would cost more than the round, and named as
    ``MlflowClient.log_image`` names it.
    """
    pictures, every = Extras(), max(1, rounds // 10)
    if not record.assignments or (record.round % every and record.round != rounds):
        return pictures
    shown = [(record.round, record.assignments)]
    if first:  # the slider starts at step 0, with the known groups: what should be found
        client = record.assignments["client"]
        shown.append(
            (
                0,
                {
                    "client": client,
                    "cluster": groups[np.asarray(client)],
                    "server": [False] * len(client),
                },
            )
        )

    def image(step: int, rows: Columns) -> dict[str, bytes]:
        from PIL import Image

        pixels = Image.fromarray(trials.cluster_squares(rows, groups))
        return ui_image("clusters", step, now_ms if step else 0, pixels)

    for step, rows in shown:
        pictures.add("images/clusters", partial(image, step, rows))
    return pictures


def ui_image(key: str, step: int, now_ms: int, image: "Image.Image") -> dict[str, bytes]:
    """Return where MLflow's UI looks for an image: the file itself, and a thumbnail of its size."""
    own = uuid.uuid5(uuid.NAMESPACE_OID, f"{key} {step}")
    name = f"images/{key}+step+{step}+timestamp+{now_ms}+{own}"
    small = image.copy()
    small.thumbnail((256, 256))
    files = {}
    for path, shown, kind in (
        (f"{name}.png", image, "PNG"),
        (f"{name}+compressed.webp", small, "WEBP"),
    ):
        buffer = io.BytesIO()
        shown.save(buffer, format=kind)
        files[path] = buffer.getvalue()
    return files


def dataset_fields(data: DataSummary) -> dict[str, str]:
    """Return what fills the UI's Dataset column: the data set, its split and its size."""
    split = " ".join(name for name in (data.dataset, data.partition, data.shift) if name != "none")
    profile = {
        "num_train": data.num_train,
        "num_test": data.num_test,
        "num_clients": len(data.label_counts),
    }
    return {
        "name": split,
        "digest": data.fingerprint[:36],
        "source_type": "local",
        "source": json.dumps({"uri": redact(data.source)}),
        "profile": json.dumps(
            profile | {"classes": [shortened(name, 100) for name in data.class_names[:100]]}
        ),
    }


class Pictures:
    """The pictures that a session makes of its trials.

    They share their splits and their kinds of figures, and drawing costs far more than logging: the
    pictures of a split are kept, and where the axes of a kind of figure lie.
    """

    def __init__(self) -> None:
        self._layouts = new_layouts()
        self._of_splits: LRUCache[str, Extras] = LRUCache(_SPLITS)

    def of_data(self, data: DataSummary) -> Extras:
        """Return the pictures of a data set under a partitioning."""
        key = _digest(data)
        if key not in self._of_splits:
            self._of_splits[key] = self._draw(data)
        return self._of_splits[key]

    def _draw(self, data: DataSummary) -> Extras:
        named = (data.dataset, data.partition, data.shift)
        split = ", ".join(part for part in named if part != "none")
        counts, groups, names = data.label_counts, data.groups, data.class_names
        per_client = f"Labels per client: {split}"
        per_class = f"Examples per class, all clients: {split}"
        against = f"Clients' labels against the global distribution: {split}"

        pictures = Extras(layouts=self._layouts)
        for name, figure in {
            "label_heatmap": partial(splits.label_heatmap, counts, groups, names, per_client),
            "label_bars": partial(splits.label_bars, counts, groups, names, per_client),
            "class_counts": partial(splits.class_counts, counts, names, per_class),
            "divergence": partial(splits.divergences, counts, groups, against),
        }.items():
            pictures.draw(f"plots/{name}.png", figure)
        for group, (examples, targets) in sorted(data.examples.items()):
            title = f"{data.dataset}, group {group}" if len(data.examples) > 1 else data.dataset
            grid = partial(splits.example_grid, examples, targets, names, title)
            if data.shows != "images":
                captions = [f"{y:.4g}" if targets.dtype.kind == "f" else names[y] for y in targets]
                draw = SHOWN[data.shows]
                grid = partial(draw, examples, captions, data.names, title)
            pictures.draw(f"plots/examples_group{group}.png", grid)
        return pictures

    def of_trial(
        self,
        rounds: Sequence[Mapping[str, float]],
        clients: Sequence[Columns],
        assignments: Sequence[Columns],
        load: Sequence[LoadSample],
        data: DataSummary | None,
        result: TrialResult | None,
        *,
        tasks: Sequence[Columns] = (),
    ) -> Extras:
        """Return the figures of a trial, by path; what it did not produce is left out."""
        pictures = Extras(layouts=self._layouts)
        shown = {m.key for kind in ("acc", "loss") for m in CATALOG.curves[kind]}
        if any(shown & row.keys() for row in rounds):  # a Flower app may have others alone
            table = partial(pd.DataFrame, list(rounds))
            pictures.draw("plots/curves.png", lambda: trials.curves(table(), _table(clients)))
        if (assigned := _table(assignments)) is not None:
            groups = dict(enumerate(map(int, data.groups))) if data is not None else None
            pictures.draw("plots/clusters.png", lambda: trials.cluster_map(assigned, groups))
        if (worked := _table(tasks)) is not None:
            pictures.draw("plots/timeline.png", lambda: timeline(worked))
        if load:
            samples = partial(pd.DataFrame, [asdict(sample) for sample in load])
            pictures.draw("plots/load.png", lambda: trials.load_plot(samples()))
        if result is not None and result.confusion is not None and data is not None:
            draw = partial(trials.confusion_matrix, result.confusion, data.class_names)
            pictures.draw("confusion.png", draw)
        return pictures


def _digest(data: DataSummary) -> str:
    """Return what tells the pictures of a split from those of others."""
    told = (
        data.fingerprint,
        data.dataset,
        data.partition,
        data.shift,
        data.class_names,
        sorted(data.examples),
    )
    key = sha256(repr(told).encode())
    for array in (
        data.label_counts,
        data.groups,
        *(part for pair in data.examples.values() for part in pair),
    ):
        key.update(np.ascontiguousarray(array).tobytes())
    return key.hexdigest()


def _table(parts: Sequence[Columns]) -> pd.DataFrame | None:
    """Return the rows of all rounds as one table; None where there are none."""
    frames = [pd.DataFrame(dict(part)) for part in parts if part]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else None
