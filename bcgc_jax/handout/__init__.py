"""Between whoever hands out chunks and the workers: what they tell each other, over a line of their own.

No line here knows of JAX or of Ray.
"""
