"""Figures, along the data path: the split, the rounds of a trial, the trials of a sweep."""
