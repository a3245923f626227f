"""The host of each worker, which a log says in a column."""

from collections.abc import Sequence

from bcgc_jax.measured.tables import Rows, Source
from bcgc_jax.steps.hosts import numbered


def noted(
    rows: Rows,
    source: Source,
    header: Sequence[str],
    names: dict[str, str],
    hosts: dict[str, str],
) -> Rows:
    """Pass the rows on, and note in `hosts` that of each worker; `names` are those of
    columns.

    Raises ValueError, with the line, for a worker that has two.
    """
    worker_at, host_at = header.index(names["worker"]), header.index(names["host"])
    for line, row in rows:
        worker, host = row[worker_at].strip(), row[host_at].strip()
        if host and hosts.setdefault(worker, host) != host:
            raise ValueError(
                f"{source.line(line)}: worker {worker} is on host {host}, and was on "
                f"{hosts[worker]} before: if it has moved, leave out the steps on one "
                "of them, or the column"
            )
        yield line, row


def shared(
    workers: Sequence[str], hosts: dict[str, str], source: Source
) -> tuple[int, ...] | None:
    """The hosts by number, in the order of the `workers`.

    None where that says nothing of who is slow together: all share one host, or nobody
    shares any.

    Raises ValueError where a worker has none, and another one has.

    >>> log = Source(["log.csv"], [0])
    >>> shared(["0", "1", "2"], {"0": "b", "1": "a", "2": "b"}, log)
    (0, 1, 0)
    >>> shared(["0", "1"], {"0": "a", "1": "a"}, log)
    """
    if not 1 < len({*hosts.values()}) < len(hosts):
        return None
    for worker in workers:
        if worker not in hosts:
            raise ValueError(
                f"{source}: worker {worker} has no host, others have: name it in one "
                "of its rows, or leave the column out"
            )
    return numbered([hosts[worker] for worker in workers])
