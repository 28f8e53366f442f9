"""Tuning: a study over heads, their parameters and the features they learn from."""
