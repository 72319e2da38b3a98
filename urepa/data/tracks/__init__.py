"""Tracks: a data set with its caches, and the lists of its samples."""
