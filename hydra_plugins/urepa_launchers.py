"""urepa's launchers. Hydra scans this namespace package, and accepts a launcher only if its class is defined here.
There is no `__init__.py`, because other distributions have plugins in the same package."""

from urepa.cluster import hydra_launchers, in_turn_launcher


class SlurmLauncher(hydra_launchers.SlurmLauncher):
    """hydra/launcher=slurm_h200"""


class LocalLauncher(hydra_launchers.LocalLauncher):
    """hydra/launcher=local"""


class InTurn(in_turn_launcher.InTurn):
    """hydra/launcher=in_turn"""
