"""Files that are not media: atomic writes, locks, and strict readers of text, JSON, arrays and tables."""
