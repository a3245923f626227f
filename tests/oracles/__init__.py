"""Answers that share no code with the package: `exact` by mpmath and fractions, `runtimes` by
SciPy."""
