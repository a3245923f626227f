"""Counts of the programs that XLA compiles."""

from collections.abc import Iterator
from contextlib import contextmanager

from jax import monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs compiled inside, as a list that grows."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **facts: str | int) -> None:
        if event == _EVENT:
            names.append(str(facts.get("fun_name", "")))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        monitoring.unregister_event_duration_listener(listen)
