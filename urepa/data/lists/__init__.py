"""The lists of a track: samples and their splits, classes, digests that identify a data set, and the files' paths."""
