"""How clients train: one by one, or many at a time, read first: ``trainers``."""
