"""Self-contained HTML pages: the trace of one input, reports of runs, results of tasks."""
