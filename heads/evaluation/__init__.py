"""What a head is worth, and what follows from its scores: metrics, intervals, tests, thresholds, calibration."""
