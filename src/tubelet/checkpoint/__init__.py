"""Every way weights are read or written, one file a format."""
