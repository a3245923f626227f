"""The group of all subcommands."""

import click

from bcgc_jax.cli.compilation import OFF, VARIABLE, keep_programs
from bcgc_jax.cli.fit import fit_command
from bcgc_jax.cli.solve import solve_command
from bcgc_jax.cli.sweep import sweep_command
from bcgc_jax.cli.train import train_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bcgc-jax")
@click.option(
    "--compilation-cache",
    metavar=f"FOLDER|{OFF}",
    help="Where compiled programs are kept, so that the next call answers at once; by default "
    f"{VARIABLE}, or JAX_COMPILATION_CACHE_DIR, or a folder bcgc_jax in your cache folder.",
)
def cli(compilation_cache: str | None) -> None:
    """Block coordinate gradient coding: which redundancy should each block of a gradient get?"""
    keep_programs(compilation_cache)


for command in (solve_command, fit_command, sweep_command, train_command):
    cli.add_command(command)
