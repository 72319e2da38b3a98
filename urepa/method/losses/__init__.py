"""Losses: a declaration each (`urepa.core.protocols.Loss`), with their mathematics in `_math` files."""
