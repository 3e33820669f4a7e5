"""What is trained: the step, its losses, optimizers, schedules and metrics."""
