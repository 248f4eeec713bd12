"""Applying heads to media of any length: one pass, constant memory, tables that can be continued."""
