"""Compute crossing probabilities, integrals and order statistics."""
