"""An experiment against its paper, read first: ``reproduce``."""
