"""Studies as chains of dependent jobs, which Hydra's own launchers do not support."""
