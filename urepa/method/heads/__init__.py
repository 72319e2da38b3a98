"""Heads, which map a tapped state to the teacher's token space. A file declares one (`urepa.core.protocols.Head`); a
file whose name ends in `_net` contains the networks."""
