"""The mathematics: objectives, samplers, losses, schedules, the training step."""
