"""Trackers, which copy metrics to other services. Each file has a declaration (`urepa.core.run_protocols.Tracker`); a
file named ..._sender has the class that it builds."""
