"""The trials of a sweep, and what is left of them to run, read first: ``sweep``."""
