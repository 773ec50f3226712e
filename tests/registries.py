"""What tests bring of their own, and who sees it."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedsweep.catalog import CATALOG
from fedsweep.config.trial import PARTS
from fedsweep.scores import SCORES


@contextmanager
def own_parts() -> Iterator[None]:
    """Have the parts that are added meanwhile, and the metrics that they declare, go away."""
    registries = [*PARTS.values(), SCORES]
    for registry in registries:
        list(registry)  # what is there is read
    tables = [
        {name: dict(table) for name, table in vars(registry).items() if isinstance(table, dict)}
        for registry in registries
    ]
    metrics = {metric.key for metric in CATALOG}
    try:
        yield
    finally:
        for key in {metric.key for metric in CATALOG} - metrics:
            CATALOG.remove(key)
        for registry, before in zip(registries, tables, strict=True):
            vars(registry).update(before)
