"""Run the command `bcgc` as `python -m bcgc_jax`."""

from bcgc_jax.cli import main

if __name__ == "__main__":
    main()
