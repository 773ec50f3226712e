"""The engine: Flower's Grid over chunks of client tasks, run by Ray actors or in this process."""
