"""Optimisers: in each file a declaration (`urepa.core.run_protocols.Optimizer`)."""
