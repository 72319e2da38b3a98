"""Objectives, how x0 is noised and what the backbone must predict: a file declares one
(`urepa.core.protocols.Objective`), and a file whose name ends in `_math` has the mathematics."""
