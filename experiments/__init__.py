"""Run the figures and studies, one module each: `python -m experiments.NAME --help`."""
