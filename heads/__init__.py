"""What is learned on top: light heads, metrics with intervals, runs and reports."""
