"""Comparisons of runs, and descriptions of experiments."""
