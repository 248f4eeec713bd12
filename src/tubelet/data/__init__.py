"""From files to batches: decoding, manifests, clips, masks, the loader, and the generated sample data set."""
