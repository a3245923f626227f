"""Run the main function of an example, and end the process at once after an error.

If a worker is lost, the step fails in all processes. The processes then end, and start
again from the last checkpoint. In each shell, a loop restarts the process:
`until python docs/examples/plain_jax.py RANK; do sleep 1; done`.
"""

import os
import sys
import traceback


def run(main):
    """Print the result of `main` for the rank of this process."""
    try:
        print(main(int(os.environ.get("RANK") or sys.argv[1])))  # torchrun sets RANK.
    except BaseException:
        # A regular exit would wait for lost workers: 93 s in JAX's shutdown.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
