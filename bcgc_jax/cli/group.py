"""The group of all subcommands."""

import click

from bcgc_jax.cli.fit_command import fit_command
from bcgc_jax.cli.solve_command import solve_command
from bcgc_jax.cli.sweep_command import sweep_command
from bcgc_jax.cli.train_command import train_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bcgc-jax")
def cli() -> None:
    """Block coordinate gradient coding: which redundancy should each block of a gradient get?"""


for command in (solve_command, fit_command, sweep_command, train_command):
    cli.add_command(command)
