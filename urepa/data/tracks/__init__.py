"""Tracks, data sets with their caches: in each file a declaration (`urepa.core.track_protocols.Track`), or in a file
named ..._caches what it builds. Files named ..._sizes hold the rules of sizes that both rest on."""
