"""Measure speed and accuracy, each next to a peer that does the same work."""
