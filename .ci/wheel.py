"""The installed wheel, outside of the source tree: names, files, the command without
extras.
"""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import bcgc_jax

assert "site-packages" in Path(bcgc_jax.__file__).parts, bcgc_jax.__file__
for name in bcgc_jax.__all__:
    getattr(bcgc_jax, name)
for name in ("py.typed", "cli/output.schema.json"):
    assert files(bcgc_jax).joinpath(name).is_file(), name

problem = bcgc_jax.Problem(bcgc_jax.ShiftedExponential(1e-3, 50.0), 4, 1000)
assert bcgc_jax.solve(problem).rounded.sum() == 1000

found = subprocess.run(
    [sys.argv[1], "solve", "--workers", "4"],
    capture_output=True,
    text=True,
    check=False,
)
assert found.returncode != 0
assert found.stdout == ""
assert len(found.stderr.splitlines()) == 1, found.stderr
assert "click" in found.stderr, found.stderr
assert "pip install" in found.stderr, found.stderr
print(bcgc_jax.__version__, found.stderr.strip())
