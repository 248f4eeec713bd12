"""Pre-training: schedules, optimizer, state, monitoring and the loop."""
