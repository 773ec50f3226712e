"""fedsweep: sweeps of (clustered) federated-learning experiments on Ray, tracked in MLflow, reproducible to the bit."""
