"""The suite: linear probes and points on the sample set, beside a random encoder and raw patches."""
