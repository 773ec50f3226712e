"""The NumPy quickstart: each client pulls the model to its own number."""
