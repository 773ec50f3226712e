"""fedsweep: sweeps of (clustered) federated-learning experiments on Ray, tracked in MLflow.

They are reproducible to the bit.
"""

__version__ = "0.1.0"
