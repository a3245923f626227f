"""Examples are looked for in every file, but torch need not be installed."""

collect_ignore = ["torch_job.py"]
