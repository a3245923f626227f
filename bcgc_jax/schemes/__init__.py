"""Ways to spread a step's work: what each is called, needs and plans on a log; without
JAX.
"""
