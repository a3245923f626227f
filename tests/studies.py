"""Studies on a few points: run as their command does, and what they leave is read."""

import csv
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import looks


def assert_text_fits(figure):
    """No title or label reaches into another panel or beyond the picture."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        room = axes.get_tightbbox()
        for panel in figure.axes:
            assert panel is axes or not room.overlaps(panel.get_tightbbox())
        assert (
            axes.yaxis.label.get_window_extent().height
            <= axes.get_window_extent().height
        )
        assert room.x0 >= 0
        assert room.y0 >= 0
        assert room.x1 <= figure.bbox.x1
        assert room.y1 <= figure.bbox.y1


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def refused(main, argv, capsys, *words):
    """The command refuses in one line, which has the words, and with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr()
    assert (stop.value.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert all(word in said.err for word in words), said.err


class Ran:
    """What a study printed, the rows that it wrote, and its pictures."""

    def __init__(
        self,
        study: Any,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        **arguments: Any,
    ) -> None:
        self.figures: dict[str, Any] = {}
        save = looks.save_figure

        def kept(figure: Any, out: Path, name: str) -> Any:
            self.figures[name] = figure
            return save(figure, out, name)

        with pytest.MonkeyPatch.context() as patched, jax.enable_x64(True):
            patched.setattr(looks, "save_figure", kept)
            study.run(folder, **arguments)
        self.folder, self.printed = folder, capsys.readouterr().out
        lines = [
            line
            for line in self.printed.splitlines()
            if not line.startswith("Written to")
        ]
        assert max(map(len, lines)) <= 100
        for picture in folder.glob("*.png"):
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert "<svg" in picture.with_suffix(".svg").read_text()

    def rows(self, name: str) -> list[dict[str, str]]:
        return rows_of(self.folder / f"{name}.csv")

    def drew(self, *names: str) -> bool:
        return {path.stem for path in self.folder.glob("*.png")} == {*names}
