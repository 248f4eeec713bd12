"""Pre-training: schedules, optimiser, state, monitoring and the loop."""
