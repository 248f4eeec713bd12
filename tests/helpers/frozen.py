"""Imported last by the fork server: what it has imported is left out of the collections of garbage of its forks."""

import gc

gc.collect()
gc.freeze()
