"""The README's drawing: four workers, three blocks, who computes what, and what the master waits for.

The times are an example: worker w needs PACE[w] for a unit of work, and each block takes its size times the
number of data subsets. `python -m experiments.drawing` writes the SVG file anew.
"""

from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).with_name("figures") / "drawing.svg"
PACE = (1.0, 1.4, 3.0, 1.2)
SIZES = (3, 3, 2)
# The groups of each block: the workers of a group send the same sum, and the master needs one of them.
GROUPS = (((0,), (1,), (2,), (3,)), ((0, 1), (2, 3)), ((0, 1, 2, 3),))
NEEDS = ("from every worker", "from one worker of each pair", "from any one worker")

LEFT, UNIT, TOP, ROW, BAR = 80, 27, 66, 38, 28
PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 334" width="760" height="334" role="img"
     font-family="sans-serif" font-size="13" fill="#222" stroke="none">
<title>Four workers, four data subsets, three blocks: who computes what, and what the master waits for</title>
<rect x="0.5" y="0.5" width="759" height="333" rx="8" fill="#f4f4f4" stroke="#999"/>
{}
</svg>
"""
BOX = '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" fill="{}" stroke="#555"/>'
TEXT = '<text x="{:g}" y="{:g}" text-anchor="{}">{}</text>'
LINE = '<path d="M{:g} {:g}V{:g}" stroke="#555" stroke-width="{}" stroke-dasharray="{}"/>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return TEXT.format(x, y, anchor, escape(words))


def at(time: float) -> float:
    """Where a time is on the page."""
    return LEFT + UNIT * round(time, 6)


def subsets(block: int, worker: int) -> tuple[int, ...]:
    """Those of the worker's group: as many as the group has workers."""
    return next(group for group in GROUPS[block] if worker in group)


def finish_times() -> list[list[float]]:
    """When each worker has each block, by worker and block."""
    load = [sum(SIZES[b] * len(subsets(b, 0)) for b in range(block + 1)) for block in range(len(SIZES))]
    return [[pace * done for done in load] for pace in PACE]


def drawing() -> str:
    """The SVG file's text."""
    finish = finish_times()
    complete = [max(min(finish[w][b] for w in group) for group in GROUPS[b]) for b in range(len(SIZES))]
    end, uncoded = max(complete), max(PACE) * sum(SIZES)
    bottom, parts = TOP + ROW * len(PACE), []
    parts.append(text(12, 23, "The step ends although worker 2, the slow one, has computed block 1 only"))
    parts.append(text(LEFT, 46, "time →"))
    parts.append(text(at(end), 46, "the step ends: the master has all blocks", "end"))
    parts.append(text(at(uncoded), 46, "end without redundancy", "end"))
    parts.append(LINE.format(at(uncoded), 52, bottom, 1.5, "5 4"))
    for worker, times in enumerate(finish):
        y = TOP + ROW * worker
        parts.append(text(12, y + 19, f"worker {worker}"))
        for block, begin in enumerate([0.0, *times[:-1]]):
            if begin >= end:
                continue
            mine = subsets(block, worker)
            used = times[block] == min(finish[w][block] for w in mine)
            what = "all subsets" if len(mine) == len(PACE) else f"subset{'s' * (len(mine) > 1)} "
            what += "" if len(mine) == len(PACE) else ", ".join(map(str, mine))
            width = at(min(times[block], end)) - at(begin)
            parts.append(BOX.format(at(begin), y, width, BAR, "#c8c8c8" if used else "#fff"))
            parts.append(text(at(begin) + 4, y + 19, f"{block + 1}: {what}"))
    parts.append(LINE.format(at(end), 52, bottom, 2, "none"))
    parts.append(text(12, bottom + 17, "master has"))
    for place, block in enumerate(reversed(range(len(SIZES)))):
        y = bottom + 17 + 21 * place
        parts.append(LINE.format(at(complete[block]), bottom + BAR - ROW, y + 3, 1.5, "none"))
        parts.append(text(at(complete[block]) + 6, y, f"block {block + 1}, {NEEDS[block]}"))
    parts.append(BOX.format(12, 298, 22, 16, "#c8c8c8") + text(40, 311, "the master uses it"))
    parts.append(BOX.format(190, 298, 22, 16, "#fff"))
    parts.append(text(218, 311, "not needed, or stopped at the end of the step"))
    parts.append(text(600, 311, "1, 2, 3: the block"))
    return PAGE.format("\n".join(parts))


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
