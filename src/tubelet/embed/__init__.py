"""Features of whole collections: tables, search, near-duplicates, and the layout of a map."""
