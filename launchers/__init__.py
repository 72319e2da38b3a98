"""Whole studies as chains of dependent jobs: what Hydra's own launchers cannot do."""
