"""Do the workers compute alike? A code amplifies what they round differently, however wide its messages are.

Types of CPU and versions of libraries decide on the last bits of a gradient. A code takes the sums over the
same subset from several workers as equal: an amplification of thousands costs float32 the fourth digit.
"""

import os
import platform
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jaxlib
import numpy as np

from bcgc_jax.coding.gradients import CodingPlan

Machine = dict[str, str]


def machine() -> Machine:
    """What decides on the last bits that this process computes, as far as it can say."""
    device = jax.devices()[0]
    found = {"device": f"{device.platform} {device.device_kind}", "architecture": platform.machine()}
    if device.platform == "cpu":
        found["CPU"] = _cpu()
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "numpy": np.__version__}
    return found | versions | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}


def _cpu() -> str:
    """Its name, and a checksum of the names of its instructions."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in first.splitlines())
    facts = {name.strip().lower(): value.strip() for name, _, value in lines}
    instructions = facts.get("flags") or facts.get("features", "")
    return f"{facts.get('model name', platform.processor())} {zlib.crc32(instructions.encode()):08x}"


def unlike(plan: CodingPlan, machines: Sequence[Machine | None]) -> str:
    """Why these machines cannot work under this plan together, "" if they can; None for one not known.

    Without a code, and with codes that amplify nothing to speak of, each gradient is that of one of them.

    >>> from bcgc_jax.coding.gradients import coding_plan
    >>> unlike(coding_plan(jax.random.key(0), {"w": np.zeros(3)}, [3, 0]), [{"CPU": "a"}, {"CPU": "b"}])
    ''
    """
    known = [each for each in machines if each is not None]
    values = {name: sorted({each.get(name, "") for each in known}) for name in sorted(set().union(*known))}
    differ = ", ".join(f"{name} {' / '.join(map(repr, v))}" for name, v in values.items() if len(v) > 1)
    if not differ or not any(code.wide for code in plan.codes):
        return ""
    return (
        f"the workers differ in {differ}, and so do the last bits of what they compute, which a "
        'code of this plan amplifies. Take a scheme without a code, as "multi_message", codes of repetition '
        '(construction="fractional_repetition"), or machines alike'
    )
