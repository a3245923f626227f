"""Measurements of speed and accuracy, each beside a peer that does the same work."""
