"""Numerical cores that several heads share; each is plain mathematics on arrays."""
