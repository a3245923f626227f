"""A function that raises, in place of another."""

from typing import Any, NoReturn


def raising(error: BaseException) -> Any:
    def raises(*_: Any, **__: Any) -> NoReturn:
        raise error

    return raises
