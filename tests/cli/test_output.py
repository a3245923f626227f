"""What all commands print with: one width, one way to write rows, errors of one line; and how one is run."""

import io
import json
import operator

import click
import pytest

from bcgc_jax.cli import output
from bcgc_jax.cli.options import one_line_errors


def test_rows_are_written_with_every_column_that_one_of_them_has(capsys):
    output.write_rows([{"a": [1, 2], "b": None}, {"a": float("inf"), "c": {"low": 1.5, "high": None}}])
    text = capsys.readouterr().out
    assert text == "a,b,c\n1 2,,\n,,low=1.5 high=\n"
    output.write_rows(({"i": i} for i in range(2)), file := io.StringIO())
    assert file.getvalue() == "i\n0\n1\n"


def test_json_has_its_version_first_and_nothing_that_is_no_json():
    assert output.json_of({"limit": 1.0}) == '{\n  "version": 2,\n  "limit": 1.0\n}'
    assert output.json_of([{"limit": None}]) == '[\n {\n  "limit": null\n }\n]'
    text = output.json_of([{"limits": (float("nan"), float("inf"))}])
    assert json.loads(text) == [{"limits": [None, None]}]
    assert [output.finite(x) for x in (2, float("inf"), float("nan"))] == [2.0, None, None]


def _columns(*heads):
    return [(head, operator.itemgetter(i)) for i, head in enumerate((output.names("scheme"), *heads))]


def test_a_table_is_100_columns_wide_whatever_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    output.print_rows([("optimal", "1.5")], _columns("expected\nruntime"))
    assert capsys.readouterr().out == "         expected\nscheme    runtime\noptimal       1.5\n"
    output.console().print("word " * 30)
    assert max(map(len, capsys.readouterr().out.splitlines())) in range(95, 101)


@pytest.mark.parametrize("rows", [1, 2])
def test_numbers_are_never_cut(capsys, rows):
    """A long name is, and a table with more columns than there is room for is wider."""
    row = ("optimal, levels 0,1,2,3,4,5,6,7,8,9", *(f"{i}.234e+99" for i in range(9 * rows)))
    output.print_rows([row], _columns(*(f"column\n{i}" for i in range(9 * rows))))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split("…")[0] == "optimal, levels 0,1,2"
    assert line.split("…")[1].split() == [f"{i}.234e+99" for i in range(9 * rows)]


def test_what_is_wrong_is_one_line_in_the_words_of_the_shell():
    for typed, error in {
        "--workers must be >= 1, got 0": ValueError("num_workers must be >= 1, got 0"),
        "--method time knows no --setup-cycles": ValueError('method="time" knows no setup_cycles'),
        "cannot read my/num_workers.csv": ValueError("cannot read my/num_workers.csv"),
        "x.csv: No such file": FileNotFoundError(2, "No such file", "x.csv"),
        "the disk is gone": OSError("the disk is gone"),
        "needs matplotlib": ImportError("needs matplotlib"),
        "too many atoms: take --trace-law smooth": ValueError("too many atoms: take a smooth law"),
    }.items():
        with pytest.raises(click.UsageError) as found, one_line_errors():
            raise error
        assert found.value.format_message() == typed


def test_a_reader_that_has_enough_is_no_error():
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError(32, "Broken pipe")
