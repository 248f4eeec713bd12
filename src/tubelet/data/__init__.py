"""From files to batches: decoding, sources and lists, shards, clips, masks, sampler and loader."""
