"""Call other programs for crossing probabilities, if they are installed.

`crossprob` is Moscovich's C++ code as a Python module
(github.com/mosco/crossing-probability), and `qqconf` and `mutoss` are packages of R.
All of them compute P(U_(k) ≤ b_k for every k) for the order statistics U of N uniform
variables. The boundaries b_1 ≤ … ≤ b_N are the rows of an array.
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
    """Moscovich's O(N²) algorithm (2023) on each row; None if not installed."""
    if importlib.util.find_spec("crossprob") is None:
        return None
    probability = importlib.import_module("crossprob").ecdf1_new_B
    return lambda boundaries: np.array(
        [probability(row) for row in boundaries.tolist()]
    )


def in_r(package: str, boundaries: np.ndarray, repeats: int) -> Measured | None:
    """Call an R package on each row, timed by R itself; None if not installed."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        input_file = Path(folder) / "given"
        output_file = Path(folder) / "answer"
        boundaries.astype(float).tofile(input_file)
        arguments = [
            package,
            str(input_file),
            str(output_file),
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
        numbers = np.fromfile(output_file)
    first, *warm = numbers[: repeats + 1].tolist()
    return measured(first, warm, numbers[repeats + 1 :])
