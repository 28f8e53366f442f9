"""What `compare` is made of: suites, cells, standings, few-shot curves and their page."""
