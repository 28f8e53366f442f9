"""Encoder families: one module is one family, and the folder is the table of what exists."""
