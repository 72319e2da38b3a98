"""The methodology section of a composed experiment, in words, formulas and tables."""
