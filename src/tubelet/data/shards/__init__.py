"""Shards: tar files of short videos and images at training size, with an index."""
