"""Programs for crossing probabilities that are measured where they are installed.

`crossprob` is Moscovich's C++ as a Python module
(github.com/mosco/crossing-probability), `qqconf` and `mutoss` are packages of R. All of
them answer P(U_(k) ≤ b_k for every k) for the order statistics U of N uniform variables
and boundaries b_1 ≤ … ≤ b_N, the rows of an array.
"""

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import Measured, measured

R_PACKAGES = ("qqconf", "mutoss")

# One call a row: none of them takes more. qqconf has the probability that a lower
# boundary is crossed.
_R = """
asked <- commandArgs(TRUE)
if (!requireNamespace(asked[1], quietly = TRUE)) quit(status = 3)
ask <- switch(asked[1],
  qqconf = function(b) 1 - qqconf::get_level_from_bounds_one_sided(rev(1 - b)),
  mutoss = function(b) suppressWarnings(mutoss::jointCDF.orderedUnif(b)))
all <- readBin(asked[2], "double", file.size(asked[2]) / 8)
rows <- asplit(matrix(all, ncol = as.integer(asked[4]), byrow = TRUE), 1)
seconds <- numeric(as.integer(asked[5]) + 1)
for (i in seq_along(seconds)) {
  start <- as.numeric(Sys.time())
  found <- vapply(rows, ask, 0.0)
  seconds[i] <- as.numeric(Sys.time()) - start
}
writeBin(c(seconds, found), asked[3])
"""
_NO_PACKAGE = 3


def crossprob() -> Callable[[np.ndarray], np.ndarray] | None:
    """The O(N²) algorithm of Moscovich (2023) on each row; None where it is not
    installed.
    """
    if importlib.util.find_spec("crossprob") is None:
        return None
    one = importlib.import_module("crossprob").ecdf1_new_B
    return lambda boundaries: np.array([one(row) for row in boundaries.tolist()])


def in_r(package: str, boundaries: np.ndarray, repeats: int) -> Measured | None:
    """Call a package of R on each row, timed by R without its start; None if not
    installed.
    """
    rscript = shutil.which("Rscript")
    if rscript is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "given", Path(folder) / "answer"
        boundaries.astype(float).tofile(given)
        arguments = [
            package,
            str(given),
            str(answer),
            str(boundaries.shape[-1]),
            str(repeats),
        ]
        done = subprocess.run(
            [rscript, "-e", _R, *arguments], capture_output=True, text=True
        )
        if done.returncode == _NO_PACKAGE:
            return None
        if done.returncode != 0:
            raise RuntimeError(f"{package} in R failed: {done.stderr.strip()}")
        found = np.fromfile(answer)
    first, *warm = found[: repeats + 1].tolist()
    return measured(first, warm, found[repeats + 1 :])
