"""What may be typed, by name: for help and for refusals, which need none of JAX.

What the names stand for is the library's; that both agree is tested (`tests/cli/test_imports.py`).
"""

MOST_WORKERS = 2**17  # as in Python; a plan that needs no search then takes two minutes
OBJECTIVES = ("expected-runtime", "completion-probability")

# The parameters of each law with their defaults. The class of shifted-exponential is ShiftedExponential.
LAWS: dict[str, dict[str, float | None]] = {
    "shifted-exponential": {"rate": None, "shift": 0.0},
    "exponential": {"rate": None},
    "weibull": {"scale": None, "shape": None, "shift": 0.0},
    "pareto": {"scale": None, "shape": None},
    "lognormal": {"location": None, "scale": None, "shift": 0.0},
    "gamma": {"shape": None, "rate": None, "shift": 0.0},
    "uniform": {"low": None, "high": None},
    "two-speed": {"fast": None, "slow": None, "probability": None},
    "deterministic": {"value": None},
}
SYNONYMS = {"concentration": "shape"}  # read as well
FITTED_LAWS = tuple(LAWS)[:7]
METHODS = (
    "optimal, subgradient, time, frequency, deadline, nested, uncoded, single_block, tandon_partial, "
    "ferdinand_full, ferdinand_half, limit, tandon:NUMBER, ferdinand:NUMBER, cyclic:NUMBER, "
    "alternating:NUMBER, backup:NUMBER, sharing:NUMBER, multi_message:NUMBER, nested:NUMBER"
)

# Of a trace: how its file is laid out, and which law stands for it.
LAYOUTS = ("auto", "long", "wide")
TRACE_LAWS = ("auto", "atoms", "smooth", "pareto-tail")

SWEPT = (".csv", ".parquet")  # files of a sweep
PICTURES = (".png", ".svg", ".pdf")

# Of a training.
ENGINES = ("simulated", "ray")
MODELS = ("softmax", "perceptron")
UNITS = ("coordinates", "leaves", "layers")
MOST_IMAGES = 1500  # to train with, one a worker at least
