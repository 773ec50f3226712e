"""The built-in Flower client: ``app`` speaks Flower, ``training`` is torch and NumPy only."""
