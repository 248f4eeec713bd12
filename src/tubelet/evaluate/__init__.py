"""What frozen features are worth: the benchmarks of dense features, and linear probes on the sample set."""
