"""LMDB stores of latents and tokens: the format, its digests, and reading past LMDB."""
