"""Tracks (data sets with their caches), and the reader whose batches depend only on seed, step and position."""
