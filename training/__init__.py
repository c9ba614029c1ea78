"""The trainer's parts: configuration, data, schedule, moving average, checkpoints, validation."""
