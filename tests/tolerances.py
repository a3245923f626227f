"""The precision that a result may be asked for."""

import numpy as np


def few_ulp(dtype: np.dtype) -> float:
    """The tolerance of values a few operations from exact ones; the worst is 2 ulp."""
    return 8 * float(np.finfo(dtype).eps)
