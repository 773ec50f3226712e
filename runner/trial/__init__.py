"""One trial: its rounds, their evaluation, when it stops, read first: ``trial``."""
