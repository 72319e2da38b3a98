"""Counting, planning, benchmarks."""
