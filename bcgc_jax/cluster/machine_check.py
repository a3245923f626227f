"""Do the workers compute alike? A code amplifies what they round differently, however wide its messages are.

Types of CPU, their instructions and versions of libraries decide on the last bits of a gradient. A code takes
the sums over the same subset from several workers as equal: at an amplification of thousands, what the fourth
digit of a float32 gradient loses is the difference between two types of CPU.
"""

import os
import platform
import zlib
from collections.abc import Sequence

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
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":") for line in file.read().partition("\n\n")[0].splitlines()]
    except OSError:
        return platform.processor()
    facts = {name.strip().lower(): value.strip() for name, _, value in lines}
    instructions = facts.get("flags") or facts.get("features", "")
    return f"{facts.get('model name', platform.processor())} {zlib.crc32(instructions.encode()):08x}"


def differences(machines: Sequence[Machine | None]) -> str:
    """What these machines do not have in common, "" if all is; None for one not known."""
    known = [each for each in machines if each is not None]
    names = sorted({name for each in known for name in each})
    values = {name: sorted({each.get(name, "") for each in known}) for name in names}
    return ", ".join(f"{name} {' / '.join(map(repr, v))}" for name, v in values.items() if len(v) > 1)


def unlike(plan: CodingPlan, machines: Sequence[Machine | None]) -> str:
    """Why these machines cannot work under this plan together, "" if they can; None for one not known.

    Without a code, and with codes that amplify nothing to speak of, each gradient is that of one of them.

    >>> from bcgc_jax.coding.gradients import coding_plan
    >>> unlike(coding_plan(jax.random.key(0), {"w": np.zeros(3)}, [3, 0]), [{"CPU": "a"}, {"CPU": "b"}])
    ''
    """
    if not any(code.wide for code in plan.codes):
        return ""
    differ = differences(machines)
    if not differ:
        return ""
    return (
        f"the workers differ in {differ}, and so do the last bits of what they compute, which a "
        'code of this plan amplifies. Take a scheme without a code, as "multi_message", codes of repetition '
        '(construction="fractional_repetition"), or machines alike'
    )
