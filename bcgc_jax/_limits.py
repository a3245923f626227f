"""The sizes up to which the package answers, for Python and the command line."""

# A plan that needs no search then takes two minutes.
MOST_WORKERS = 2**17
