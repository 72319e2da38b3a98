"""Evaluations of a model: validation during training, samples and probes after it."""
