"""The command `bcgc`."""

import gc
import os
from typing import NoReturn

from bcgc_jax._extras import to_install
from bcgc_jax.cli.exit import finish, interrupted, say, take_any_sign


def main() -> NoReturn:
    """Run `bcgc`; bad input ends with one line and exit status 2."""
    # What XLA thinks of constants, for example, is not for the screen; it is read when
    # JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # what JAX traces is many objects and few circles: a tenth of the time
    gc.set_threshold(100_000)
    try:
        take_any_sign()
        status = _run()
    except KeyboardInterrupt:  # during the imports
        interrupted("bcgc")
    finish("bcgc", status)


def _run() -> int:
    try:
        import click

        from bcgc_jax.cli.commands import cli

        return cli.main(prog_name="bcgc", standalone_mode=False) or 0
    except ModuleNotFoundError as error:  # of click too: first
        package = str(error.name).partition(".")[0]
        say(f"bcgc: {package} is missing: {to_install('cli')}")
    except BrokenPipeError:  # the reader (`| head`) has what it wanted
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        say(f"bcgc: {' '.join(error.format_message().split())}")
    except click.Abort as stop:
        interrupted("bcgc", *stop.args)
    return 2
