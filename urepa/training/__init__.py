"""Building a run, the loop, the optimiser, guards."""
