"""Tracks, data sets with their caches. A file declares a track (`urepa.core.track_protocols.Track`); a file named
..._caches has the objects that a declaration builds, and ..._sizes has checks of sizes that both use."""
