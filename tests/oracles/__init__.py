"""Answers that share no code with the package: `exact` in mpmath and fractions, `runtimes` in NumPy, SciPy."""
