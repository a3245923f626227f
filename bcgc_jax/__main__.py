"""`python -m bcgc_jax`: the command `bcgc`."""

from bcgc_jax.cli import main

if __name__ == "__main__":
    main()
