"""How a process of these examples ends: at once, if there is an error.

A worker that is lost ends the step in all processes. Then the processes end too, and
start again from the last checkpoint. In each shell a loop starts its process again:
`until python docs/examples/plain_jax.py RANK; do sleep 1; done`.
"""

import os
import sys
import traceback


def run(main):
    """Print what `main` returns for the rank of this process."""
    try:
        print(main(int(os.environ.get("RANK") or sys.argv[1])))  # RANK: by torchrun
    except BaseException:
        # An orderly end would wait for lost workers, in JAX's shutdown for 93 s.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
