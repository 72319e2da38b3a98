"""Heads, from a tapped state to the teacher's token space: a file declares one (`urepa.core.protocols.Head`), and the
file of the same name that ends in `_net` has its network."""
