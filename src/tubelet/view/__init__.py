"""Pages and pictures for people: the life of one input, and a run's report."""
