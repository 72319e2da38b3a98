"""What a model is worth: validation during training, samples and probes after it."""
