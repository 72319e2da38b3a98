"""Building a run, the training loop, the optimiser, guards."""
