"""Heads: one module is one head, and the folder is the table of what exists."""
