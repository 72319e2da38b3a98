"""Which part of its image each stored token shows."""
