"""Schemes: what each is called, needs, and plans on a log; without JAX."""
