"""Findings: what papers claim of methods, run again with tiny models on worlds of codes, with the deviation over seeds beside the mean."""
