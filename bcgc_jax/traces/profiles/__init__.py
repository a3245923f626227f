"""Make timing logs of profiler traces: compute times, and times blocked in collectives.

All ranks leave a blocking collective together, at time T = (last entry) + (transfer).
A rank that enters at time e is blocked for T - e, so the shortest blocked time of all
ranks is the transfer. The compute time of a step is the time between two releases minus
the *exposed* seconds, in which a collective runs and the rank computes nothing. The
clocks of the ranks need not be synchronised.
"""
