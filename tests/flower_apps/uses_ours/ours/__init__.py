"""A method and the clients of fedsweep in a Flower app: ``flwr run`` runs it like any other."""
