"""Draw the README's figure: a step of four workers, of which one is a straggler.

The times are an example: worker w takes PACE[w] for a chunk. The package's own rule
assigns the chunks. `python -m experiments.drawing` writes the SVG file again.
"""

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from bcgc_jax.balancing.chunk_lengths import UNITS, chunk_sizes
from bcgc_jax.balancing.ledger import Queue
from bcgc_jax.balancing.placement import spread

FILE = Path(__file__).with_name("figures") / "drawing.svg"
PACE = (1.2, 1.0, 3.0, 1.1)
SLOW = PACE.index(max(PACE))
CHUNKS = 4
STORED = 2

LEFT = 80
UNIT = 54
TOP = 66
ROW = 38
BAR = 28
PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 266" width="760"
     height="266" role="img" font-family="sans-serif" font-size="13" fill="#222"
     stroke="none">
<title>
Four workers, four subsets of the data in chunks: who computes what, and when the step
ends
</title>
<rect x="0.5" y="0.5" width="759" height="265" rx="8" fill="#f4f4f4" stroke="#999"/>
{}
</svg>
"""
BOX = '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" fill="{}" stroke="#555"{}/>'
TEXT = '<text x="{:g}" y="{:g}" text-anchor="{}">{}</text>'
LINE = (
    '<path d="M{:g} {:g}V{:g}" stroke="#555" stroke-width="{}" stroke-dasharray="{}"/>'
)
DASHED = ' stroke-dasharray="5 4"'


class Done(NamedTuple):
    """A chunk of a `subset`, computed by a worker from `begin` to `end`."""

    worker: int
    subset: int
    begin: float
    end: float


def step() -> list[Done]:
    """Free workers take one chunk after the other; of several the first by number."""
    sizes = chunk_sizes(CHUNKS)
    workers = range(len(PACE))
    storage = spread(len(PACE), STORED, len(sizes))
    queue = Queue(storage, [sizes for _ in workers])
    free = dict.fromkeys(workers, 0.0)
    done = []
    while free:
        worker = min(free, key=lambda w: (free[w], w))
        begin = free.pop(worker)
        best = queue.best(worker, PACE)
        if best is None:
            continue
        queue.take(best)
        subset, chunk = best
        free[worker] = begin + PACE[worker] * sizes[chunk] / UNITS
        done.append(Done(worker, subset, begin, free[worker]))
    return done


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return TEXT.format(x, y, anchor, escape(words))


def x_of(time: float) -> float:
    """Return the place of a time on the page."""
    return LEFT + UNIT * round(time, 6)


def drawing() -> str:
    """The SVG file's text."""
    done = step()
    end = max(chunk.end for chunk in done)
    alone = CHUNKS * max(PACE)
    bottom = TOP + ROW * len(PACE)
    parts = []
    title = (
        f"Worker {SLOW} is slow. The others compute more than half of its data, and "
        "all end together"
    )
    parts.append(text(12, 23, title))
    parts.append(text(LEFT, 46, "time →"))
    parts.append(text(x_of(end), 46, "the step ends", "end"))
    parts.append(text(x_of(alone), 46, "it would end without sharing", "end"))
    parts.append(LINE.format(x_of(alone), 52, bottom, 1.5, "5 4"))
    for worker in range(len(PACE)):
        parts.append(text(12, TOP + ROW * worker + 19, f"worker {worker}"))
    for chunk in done:
        y = TOP + ROW * chunk.worker
        width = x_of(chunk.end) - x_of(chunk.begin)
        parts.append(
            BOX.format(x_of(chunk.begin), y, width, BAR, _shade(chunk.subset), "")
        )
        parts.append(
            text(x_of(chunk.begin) + width / 2, y + 19, str(chunk.subset), "middle")
        )
    y = TOP + ROW * SLOW
    parts.append(
        BOX.format(x_of(end) + 4, y, x_of(alone) - x_of(end) - 4, BAR, "none", DASHED)
    )
    parts.append(
        text(
            x_of(end) + 12,
            y + 19,
            f"without sharing, all others wait for worker {SLOW}",
        )
    )
    parts.append(LINE.format(x_of(end), 52, bottom, 2, "none"))
    parts.append(BOX.format(12, 234, 22, 16, _shade(SLOW), ""))
    parts.append(text(40, 247, f"a chunk of subset {SLOW}, worker {SLOW}'s own"))
    parts.append(BOX.format(290, 234, 22, 16, "#fff", ""))
    parts.append(text(318, 247, "a chunk of another subset; the number says which"))
    return PAGE.format("\n".join(parts))


def _shade(subset: int) -> str:
    if subset == SLOW:
        return "#c8c8c8"
    return "#fff"


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
