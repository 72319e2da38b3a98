"""Optimisers. Each file has a declaration (`urepa.core.run_protocols.Optimizer`)."""
