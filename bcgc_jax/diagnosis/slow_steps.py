r"""Workers that are slow in single steps: B of z = a + B + g, drawn given the chunks.

z[t,w,c] is ln of a chunk's seconds, without what is steady. a[t] is of the step, and
free; B[t,w] is of the worker in this step, from any distribution H; g[t,w,c] is of the
chunk, from any f. B has mean 0 over the workers of a step.

The loss of a step is a maximum over workers: what B adds to it depends on how B is
distributed. Best guesses of B vary too little, for they are drawn towards 0; means of
chunks vary too much, for they have chance in them. So H and f are learnt from the log
(stochastic EM: Celeux & Diebolt 1985), and B is drawn given the chunks. The variance of
B is known without H and f (analysis of variance). H is scaled to it in each draw, and
to its error (multiple imputation: Rubin 1987).

With few chunks the tail of f is not told from that of H. Of two chunks with very skewed
lengths (exponential ones) .76 of the loss is called the data's where .59 is.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# Rounds in which H and f are learnt, and rounds between two draws.
_ROUNDS, _BETWEEN = 40, 4
# Points of H; cells of f between two of them.
_POINTS, _FINE = 60, 4
# f has this probability in a wide tail, so that no chunk is impossible.
_TAIL = 0.002
# H has this one spread evenly over its points, so that no worker is.
_FLOOR = 1e-6
# H and f are learnt from at most so many worker-steps.
_LEARNT_FROM = 4000
# A variance of less than so many errors is taken for none: its grid would be too fine.
_FINEST = 0.01
# Logarithms that deviate by less differ by rounding alone.
_ROUNDING = 1e-9
# B shows if its variance is above so many errors.
_SHOWS = 1.96


class Variance(NamedTuple):
    """The variance of B by analysis of variance, V; and what its error depends on.

    Attributes:
      between: V, unbiased, and below 0 by chance.
      within: σ² of chunks around the mean of their worker's step.
      fourth: κ₄, their fourth cumulant, at least 0.
      shape: S, W, C.
    """

    between: float
    within: float
    fourth: float
    shape: tuple[int, ...]

    def error(self, between: float) -> float:
        """The standard error of V, by chance alone, where the variance of B is
        `between`.

        error² = [(2s² + 4sV)/(W-1) + κ₄/(C³W) + 2s²/(W(C-1))] / S with s = σ²/C.
        """
        steps, workers, chunks = self.shape
        s = self.within / chunks
        of_means = (2 * s**2 + 4 * s * between) / (workers - 1)
        of_chunks = self.fourth / (chunks**3 * workers) + 2 * s**2 / (
            workers * (chunks - 1)
        )
        return math.sqrt((of_means + of_chunks) / steps)

    @property
    def shows(self) -> bool:
        return self.between > _SHOWS * self.error(0.0)

    @property
    def of_random(self) -> float:
        """The part of B in the variance of the mean chunk of a worker's step."""
        between = max(self.between, 0.0)
        return between / max(between + self.within / self.shape[2], 1e-300)


def variance_of(z: np.ndarray) -> Variance:
    """V = mean_t var_w(mean_c z) - σ²/C, `[S, W, C]`."""
    steps, workers, chunks = z.shape
    means = z.mean(axis=2)
    residuals = z - means[:, :, None]
    within = float(np.sum(residuals**2) / (steps * workers * (chunks - 1)))
    fourth = float(np.mean(residuals**4)) * (chunks / (chunks - 1)) ** 2 - 3 * within**2
    between = float(means.var(axis=1, ddof=1).mean()) - within / chunks
    return Variance(between, within, max(fourth, 0.0), z.shape)


class Laws(NamedTuple):
    """H and f.

    Attributes:
      points: values that B may have, evenly spaced, `[K]`.
      chances: of the points, `[K]`.
      residuals: g, of which f is the smoothed histogram, `[n]`.
      deviation: σ of f.
      span: the largest z - a - B that is looked up.
    """

    points: np.ndarray
    chances: np.ndarray
    residuals: np.ndarray
    deviation: float
    span: float

    @property
    def spacing(self) -> float:
        return float(self.points[1] - self.points[0])

    def scaled(self, between: float) -> "Laws":
        """H with its mean kept, and with this variance."""
        mean = self.chances @ self.points
        apart = self.points - mean
        scale = math.sqrt(between / (self.chances @ apart**2))
        return self._replace(
            points=mean + scale * apart, span=self.span * max(scale, 1.0)
        )


class Density(NamedTuple):
    """ln f in cells around 0, `[2 · half + 1]`."""

    log: np.ndarray
    cell: float

    def place(self, residuals: np.ndarray) -> np.ndarray:
        half = len(self.log) // 2
        places = np.round(residuals / self.cell).astype(np.int32) + half
        return np.clip(places, 0, 2 * half)

    def of(self, residuals: np.ndarray) -> np.ndarray:
        return self.log[self.place(residuals)]

    def of_points(self, residuals: np.ndarray, count: int) -> np.ndarray:
        """Σ_c ln f(residual - k · spacing) for k below `count`, `[S, W, C]` to
        `[S, W, count]`.

        A row of a table has ln f at all these k, next to each other in memory.
        """
        padded = np.pad(self.log, (_FINE * count, -len(self.log) % _FINE), "edge")
        downward = padded.reshape(-1, _FINE)[::-1].T.copy()
        rows = np.lib.stride_tricks.sliding_window_view(downward, count, axis=1)
        group, phase = np.divmod(self.place(residuals) + _FINE * count, _FINE)
        first = downward.shape[1] - 1 - group
        summed = np.zeros((*residuals.shape[:2], count), np.float32)
        for chunk in range(residuals.shape[2]):
            summed += rows[phase[:, :, chunk], first[:, :, chunk]]
        return summed


def _first_laws(
    z: np.ndarray, common: np.ndarray, between: float, deviation: float
) -> Laws:
    """Begin with means of chunks, drawn in to the variance of B."""
    chunks = z.shape[2]
    means = z.mean(axis=2)
    apart = means - common
    seen = max(float(means.var(axis=1, ddof=1).mean()), 1e-300)
    guessed = apart * min(1.0, math.sqrt(between / seen))
    root = math.sqrt(between)
    low, high = guessed.min() - 2 * root, guessed.max() + 2 * root
    narrow = min(deviation / math.sqrt(chunks), root) / 3
    spacing = max(narrow, (high - low) / _POINTS)
    points = np.arange(low, high + spacing, spacing)
    nearest = np.round((guessed.ravel() - low) / spacing).astype(int)
    counts = np.bincount(nearest.clip(0, len(points) - 1), minlength=len(points)) + 1e-3
    unbiased = (z - means[:, :, None]) * math.sqrt(chunks / (chunks - 1))
    span = float(np.ptp(z) + high - low + 8 * deviation)
    return Laws(points, counts / counts.sum(), unbiased, deviation, span)


def _density(laws: Laws) -> Density:
    """Smooth the histogram of residuals at constant variance, and add a wide tail."""
    cell = laws.spacing / _FINE
    half = int(laws.span / cell) + 1
    width = max(laws.spacing / 2, 0.15 * laws.deviation)
    shrunk = laws.residuals.ravel() / math.sqrt(1 + (width / laws.deviation) ** 2)
    places = np.clip(np.round(shrunk / cell).astype(int) + half, 0, 2 * half)
    counts = np.bincount(places, minlength=2 * half + 1) / places.size
    grid = np.arange(-half, half + 1) * cell
    reach = min(int(4 * width / cell) + 1, half)
    kernel = np.exp(-0.5 * (grid[half - reach : half + reach + 1] / width) ** 2)
    wide = np.exp(-0.5 * (grid / (3 * laws.deviation)) ** 2)
    body = np.convolve(counts, kernel / kernel.sum(), "same")
    mixed = (1 - _TAIL) * body + _TAIL * wide / wide.sum()
    return Density(np.log(mixed + 1e-12).astype(np.float32), cell)


def _random_drawn(
    z: np.ndarray,
    common: np.ndarray,
    laws: Laws,
    density: Density,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw B given z, a, H and f, `[S, W]`; and the mean chances of the points, `[K]`.

    P(B = u_k) ∝ h_k Π_c f(z - a - u_k). Between two points B is normal.
    """
    points, spacing = laws.points, laws.spacing
    logs = density.of_points(z - common[:, :, None] - points[0], len(points))
    likely = np.exp(logs - logs.max(axis=2, keepdims=True)) * laws.chances.astype(
        np.float32
    )
    summed = np.cumsum(likely, axis=2)
    total = summed[:, :, -1:]
    uniform = rng.random((*total.shape[:2], 1)).astype(np.float32)
    index = np.minimum(np.sum(uniform * total > summed, axis=2), len(points) - 1)
    of_mean = laws.deviation**2 / z.shape[2]
    kept = spacing**2 / 12 / (spacing**2 / 12 + of_mean)
    middle = points[index]
    apart = z.mean(axis=2) - common - middle
    within = math.sqrt(kept * of_mean) * rng.standard_normal(middle.shape)
    return middle + kept * apart + within, np.mean(
        likely / total, axis=(0, 1), dtype=float
    )


def _common_moved(
    without_random: np.ndarray,
    common: np.ndarray,
    laws: Laws,
    density: Density,
    rng: np.random.Generator,
) -> np.ndarray:
    """Move a by a step of Metropolis, given z - B, `[S, 1]`."""
    steps, workers, chunks = without_random.shape
    length = 1.5 * laws.deviation / math.sqrt(chunks * workers)
    tried = common + length * rng.standard_normal((steps, 1))
    gain = density.of(without_random - tried[:, :, None]) - density.of(
        without_random - common[:, :, None]
    )
    accepted = np.log(rng.random(steps)) < gain.sum(axis=(1, 2))
    return np.where(accepted[:, None], tried, common)


def _learnt(
    z: np.ndarray, between: float, deviation: float, rng: np.random.Generator
) -> tuple[Laws, np.ndarray]:
    """Return H and f, which were learnt from z, and a, `[S, 1]`."""
    common = _medians(z)
    laws = _first_laws(z, common, between, deviation)
    for _ in range(_ROUNDS):
        density = _density(laws)
        random, chances = _random_drawn(z, common, laws, density, rng)
        without_random = z - random[:, :, None]
        common = _common_moved(without_random, common, laws, density, rng)
        chances = (1 - _FLOOR) * chances + _FLOOR / len(chances)
        laws = laws._replace(
            chances=chances, residuals=without_random - common[:, :, None]
        )
    return laws, common


def _medians(z: np.ndarray) -> np.ndarray:
    return np.median(z.mean(axis=2), axis=1, keepdims=True)


def _drawn(
    z: np.ndarray, common: np.ndarray, laws: Laws, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw B of known H and f, `[S, W]`, and a, `[S, 1]`."""
    density = _density(laws)
    for _ in range(_BETWEEN):
        random, _ = _random_drawn(z, common, laws, density, rng)
        common = _common_moved(z - random[:, :, None], common, laws, density, rng)
    return random, common


def random_of(
    z: np.ndarray, redrawn: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray], bool]:
    """Draw B, `[S, W]`: once with its variance as estimated, and for D draws with its
    error.

    Args:
      z: ln seconds of chunks less what is steady, `[S, W, C]`, C ≥ 2 and W ≥ 2.
      redrawn: D of these, each less another draw of what is steady.
      rng: of the draws.

    Returns B for `z`, which is 0 where none shows; B for each of `redrawn`, also where
    none shows; and whether one shows, V > 1.96 error(0).
    """
    variance = variance_of(z)
    if max(variance.between, variance.within) < _ROUNDING**2:
        return np.zeros(z.shape[:2]), [np.zeros(z.shape[:2]) for _ in redrawn], False
    deviation = max(math.sqrt(variance.within), _ROUNDING)
    stride = math.ceil(z.shape[0] * z.shape[1] / _LEARNT_FROM)
    least = max(variance.between, variance.error(0.0), 1e-12)
    laws, common = _learnt(z[::stride], least, deviation, rng)
    if stride > 1:
        _, common = _drawn(z, _medians(z), laws, rng)
    normal = NormalDist().inv_cdf
    chance = np.array([normal((d + 0.5) / len(redrawn)) for d in range(len(redrawn))])
    error = variance.error(max(variance.between, 0.0))
    betweens = variance.between + error * rng.permutation(chance)
    finest = _FINEST * variance.error(0.0)
    drawn: list[np.ndarray] = []
    for logs, between in zip((z, *redrawn), (variance.between, *betweens), strict=True):
        random = np.zeros(z.shape[:2])
        if between > finest and (drawn or variance.shows):
            random, common = _drawn(logs, common, laws.scaled(float(between)), rng)
        drawn.append(random - random.mean(axis=1, keepdims=True))
    return drawn[0], drawn[1:], variance.shows
