"""A run's folder: config, checkpoints, metrics, summary, provenance, MLflow."""
