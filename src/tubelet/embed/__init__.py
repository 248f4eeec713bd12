"""Features of whole collections: tables of them, and what is nearest in one."""
