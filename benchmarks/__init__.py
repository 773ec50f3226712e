"""Benchmarks of the engine against peers: ``make bench``, or ``python -m benchmarks ROW ...`` for some rows."""
