"""Losses. A file declares one (`urepa.core.protocols.Loss`); a file whose name ends in `_math` contains its
mathematics."""
