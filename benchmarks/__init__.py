"""Benchmarks against peers: ``make bench``, or ``python -m benchmarks ROW ...`` for some rows."""
