"""The optional end-to-end path above the frozen features."""
