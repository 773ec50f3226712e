"""Images, their split among clients, and the known shifts between groups of clients."""
