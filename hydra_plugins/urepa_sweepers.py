"""urepa's sweeper. Hydra scans this namespace package, and accepts a sweeper only if its class is defined here."""

from urepa.cluster import optuna_sweeper


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """hydra/sweeper=optuna"""
