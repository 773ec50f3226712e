"""A Flower app of somebody's own, unmodified, as the trials of a sweep: read ``sweep.py`` first."""
