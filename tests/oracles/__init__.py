"""Answers without code of the package: by mpmath, fractions, NumPy and SciPy."""
