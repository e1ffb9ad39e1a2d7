"""Trained worlds: played on a page or in a terminal, as environments, and what is read off their frames."""
