"""Tools around a network: configuration, checkpoints, optimizers, schedules, metrics, plots and logs."""
