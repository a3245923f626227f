"""What a step is, who is handed which chunk, and how long it takes; without JAX."""
