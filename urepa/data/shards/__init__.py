"""Latents, image tokens and encoded captions in tar shards, one folder for each bucket."""
