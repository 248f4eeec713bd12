"""What frozen features are worth: linear probes beside a random encoder and raw patches."""
