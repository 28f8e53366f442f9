"""Objectives: what is minimised, one file each, with its formula."""
