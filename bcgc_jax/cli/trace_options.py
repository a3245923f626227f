"""Options of a trace: how its file is laid out, and which law stands for its times."""

import dataclasses
from typing import TYPE_CHECKING

import click

from bcgc_jax.cli.arguments import refuse_without_effect
from bcgc_jax.cli.names import LAYOUTS, TRACE_LAWS
from bcgc_jax.cli.options import group, option

if TYPE_CHECKING:
    from bcgc_jax.cli.traces import TraceFile


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the file is laid out: keywords of `load_trace`."""

    step: str = option(str, "Column of the step.", typed="--step-column", default="step")
    worker: str = option(str, "Column of the worker.", typed="--worker-column", default="worker")
    seconds: str = option(str, "Column of the times.", typed="--seconds-column", default="seconds")
    censored: str | None = option(
        str, "Column of 0 or 1: the worker was cut off, the time a lower bound.", typed="--censored-column"
    )
    load: str | None = option(
        str,
        "Column of what a worker had done by then, in cycles; `load` where there is one.",
        typed="--load-column",
    )
    layout: str = option(
        LAYOUTS,
        "A row for each step and worker (long), or a column for each worker (wide).",
        default=LAYOUTS[0],
    )

    def __post_init__(self) -> None:
        if self.layout == "wide":
            refuse_without_effect("in the wide layout", "worker", "seconds", "load")


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """A trace in place of a law."""

    path: str | None = option(
        click.Path(allow_dash=True),
        "CSV (also .csv.gz) or Parquet of measured times, in place of a law; - is standard input.",
        typed="--trace",
    )
    kind: str = option(
        TRACE_LAWS,
        "Each measured time an atom, or a smooth law, perhaps with a Pareto tail fitted to it; auto: atoms "
        "where that is quick, else a smooth law as near to them as the trace can tell.",
        typed="--trace-law",
        default=TRACE_LAWS[0],
    )
    columns: Layout = group(Layout)
    keep_workers: bool = option(bool, "Keep the steps of the trace whole: its workers are not alike.")

    def __post_init__(self) -> None:
        if self.path is None:
            layout = [field.name for field in dataclasses.fields(Layout)]
            refuse_without_effect("without --trace", "keep_workers", "kind", *layout)
        if self.keep_workers:
            refuse_without_effect("with --keep-workers, for which steps are whole", "kind")

    def file(self) -> "TraceFile | None":
        """The file that was named, if one was."""
        if self.path is None:
            return None
        from bcgc_jax.cli.traces import TraceFile

        return TraceFile(self.path, vars(self.columns), self.kind, self.keep_workers)
