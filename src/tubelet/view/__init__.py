"""Self-contained HTML pages: features, maps, the trace of one input, reports of runs and fits, predictions, results."""
