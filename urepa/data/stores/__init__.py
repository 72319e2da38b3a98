"""LMDB stores of latents and tokens: their format, their digests, and reads that bypass LMDB."""
