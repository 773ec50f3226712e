"""From stored trials to tables, tests and figures, read first: ``report``."""
