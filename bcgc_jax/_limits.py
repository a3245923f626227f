"""Limit the sizes of problems, for Python and the command line."""

# Maximum number of workers. For this number, a plan without a search takes two minutes.
MOST_WORKERS = 2**17
