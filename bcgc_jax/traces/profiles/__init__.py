"""From a profiler's traces to a log: what each worker computed, and what it waited.

All ranks leave a blocking collective together, at T = (the last entry) + (the
transfer). So a rank was in it for T minus its own entry, and the shortest time of a
step is the transfer. A worker's own seconds of a step are those from the last release
to this one, less the *exposed* seconds: a collective runs, and no computation of the
rank. Only each rank's own clock is used.
"""
