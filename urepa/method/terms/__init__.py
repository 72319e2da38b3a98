"""Alignment terms of `loss=several_terms`. A file declares one (`urepa.core.term_protocols.Term`); a file whose name
ends in `_math` contains the mathematics."""
