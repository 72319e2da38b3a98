"""Jobs, queues, Hydra's launchers and sweeps."""
