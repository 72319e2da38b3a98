"""Tracks: data sets with their caches, and the reader that makes addressed batches of them."""
