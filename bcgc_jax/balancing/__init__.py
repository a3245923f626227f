"""Load balancing by work sharing: who stores what, who is handed which chunk, replays.

`dispatch` shares the work of training loops, and `compiled` that of a jitted step.
Nothing else here needs JAX.
"""
