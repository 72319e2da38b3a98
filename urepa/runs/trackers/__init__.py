"""Where metrics are copied to: in each file a declaration (`urepa.core.run_protocols.Tracker`), or in a file named
..._sender what it builds."""
