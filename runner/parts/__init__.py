"""How the parts of a run are found, whoever wrote them: methods, partitions, shifts, networks.

``code.py`` reads and loads a file of somebody's own, ``registry.py`` finds parts by name, or by
where they lie, ``family.py`` has those that bring settings.
"""
