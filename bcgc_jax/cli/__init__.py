"""The command `bcgc`."""

import os
import sys

from bcgc_jax._extras import to_install


def main() -> None:
    """Run `bcgc`; bad input ends with one line and exit status 2."""
    try:
        import click

        from bcgc_jax.cli.group import cli
    except ModuleNotFoundError as error:
        print(f"bcgc: {error.name} is missing: {to_install('cli')}", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(cli.main(prog_name="bcgc", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        print(f"bcgc: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("bcgc: interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that compile cannot be stopped, and the interpreter would wait for them.
        os._exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; nothing more can be written.
        sys.stderr.close()
        sys.exit(0)
