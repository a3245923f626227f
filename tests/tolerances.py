"""How exact a result may be asked to be."""

import numpy as np


def few_ulp(dtype: np.dtype) -> float:
    """For values that are a handful of operations away from exact ones; the worst measured is 2
    ulp."""
    return 8 * float(np.finfo(dtype).eps)
