"""Gradient codes, coded gradients, and training with them on a simulated clock."""
