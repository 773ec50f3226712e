"""How long tests wait for other processes."""

PATIENCE_S = 420.0
"""Seconds for what takes ten on an idle machine: others may use it, too. Under pytest's limit."""
SETTLED_S = 60.0
"""Seconds for what should be there, or gone, at once."""
