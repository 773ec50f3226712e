"""What a federation looks like: which client has which examples, and how groups of them differ.

A rule is a file, with its settings: ``partitions/``, ``shifts/``.
"""
