"""Objectives: how x0 is noised and what the backbone must predict. A file declares one
(`urepa.core.protocols.Objective`); a file whose name ends in `_math` contains the mathematics."""
