"""The lists of a track: samples and their splits, classes, what tells two data sets apart, and where all that lies."""
