"""Reading of measured times."""

import gzip
import io
import os
import random
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from bcgc_jax.traces.trace import Trace, load_trace
from tests.problems import not_none

_LONG = "step,worker,seconds\n"
_LOADS = "step,worker,load,seconds\n"


def _write(tmp_path: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _cells(trace: Trace) -> dict[tuple[str, str], tuple[float, bool]]:
    names = zip(
        trace.step_names[trace.step].tolist(),
        trace.worker_names[trace.worker].tolist(),
        strict=True,
    )
    return dict(
        zip(
            names,
            zip(trace.seconds.tolist(), trace.censored.tolist(), strict=True),
            strict=True,
        )
    )


def _assert_equal(first: Trace, second: Trace) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["1e1", "9.5", "-inf"], ["1e1", "9.5", "-inf"]),
        (["1e1", "9.5", "2"], ["2", "9.5", "1e1"]),
        (["b", "10", "9"], ["b", "10", "9"]),
        # Nanoseconds, which double precision does not tell apart.
        (
            ["1700000000000000003", "1700000000000000002"],
            ["1700000000000000002", "1700000000000000003"],
        ),
        (["99999999999999999999", "3"], ["3", "99999999999999999999"]),
    ],
)
def test_steps_are_in_the_order_of_their_numbers_or_else_of_first_mention(
    tmp_path, labels, order
):
    text = _LONG + "".join(f"{label},a,{i + 1}\n" for i, label in enumerate(labels))
    trace = load_trace(_write(tmp_path, text))
    assert trace.step_names.tolist() == order
    assert trace.step_names[trace.step].tolist() == labels


@pytest.mark.parametrize(
    ("separator", "end", "start"),
    [
        (",", "\n", ""),
        (";", "\r\n", "\ufeff"),
        ("\t", "\r", "\n\n"),
        ("|", "\r\n", "\n\n"),
    ],
)
def test_separators_ends_of_lines_and_byte_order_marks_are_found_out(
    tmp_path, separator, end, start
):
    lines = ["step,worker,seconds,a note", "1,a,1.5,", "2,a,2.5,x", "", "1,b,3.5,y"]
    text = start + end.join(lines).replace(",", separator)
    cells = {
        ("1", "a"): (1.5, False),
        ("2", "a"): (2.5, False),
        ("1", "b"): (3.5, False),
    }
    assert _cells(load_trace(_write(tmp_path, text))) == cells


def test_quoted_fields_and_blanks(tmp_path):
    text = (
        '"step", "worker","seconds","x;y;z;w"\n'
        '1,"a, b", 1.5 ,"two\n'
        'lines"\n'
        ' "2","a ""c""",2.5,\n'
        "1,  a , 3,\n"
    )
    trace = load_trace(_write(tmp_path, text))
    assert trace.worker_names[trace.worker].tolist() == ["a, b", 'a "c"', "a"]
    assert trace.worker_names.tolist() == ["a", 'a "c"', "a, b"]
    assert trace.seconds.tolist() == [1.5, 2.5, 3.0]
    with pytest.raises(ValueError, match="line 4: seconds"):
        load_trace(_write(tmp_path, text.replace("2.5", "soon")))


def test_columns_of_other_names(tmp_path):
    path = _write(
        tmp_path,
        "iteration,rank,duration,cut\n1,0,2.5,no\n1,1,1.5,YES\n2,0,,\n2,1,4,0\n",
    )
    names: dict[str, Any] = dict(
        step="iteration", worker="rank", seconds="duration", censored="cut"
    )
    trace = load_trace(path, **names)
    assert _cells(trace) == {
        ("1", "0"): (2.5, False),
        ("1", "1"): (1.5, True),
        ("2", "1"): (4.0, False),
    }
    assert trace.num_missing == 1
    np.testing.assert_array_equal(trace.table(), [[2.5, np.nan], [np.nan, 4.0]])
    path.write_text(path.read_text().replace("YES", "maybe"))
    with pytest.raises(ValueError, match="line 3: cut must be one of 0, false"):
        load_trace(path, **names)


@pytest.mark.parametrize(
    ("header", "names", "message"),
    [
        (
            "step,worker,time",
            {},
            "no column seconds: it has step, worker, time. .*seconds=",
        ),
        (
            "Step,Worker,Seconds",
            {},
            "no column step, worker, seconds: it has Step, Worker, Seconds",
        ),
        (
            "step,worker,seconds",
            {"censored": "cut"},
            "no column cut: it has step, worker, seconds",
        ),
        (
            "iteration,rank,duration",
            {},
            'no column step, worker, seconds: .*layout="wide"',
        ),
        ("step,w1,w2", {"seconds": "time"}, "no column worker, time"),
        ("step,w1,w2", {"censored": "w2"}, "no column worker, seconds"),
        (
            "step,w1,w2",
            {"censored": "w2", "layout": "wide"},
            "no place for w2, use the long one",
        ),
        *(
            (header, {}, "no column worker, seconds")
            for header in ("step,w1", "step,a,b")
        ),
        *(
            (header, {}, "no column step, worker, seconds")
            for header in ("1,2,3", "1.5,2.5,3.5")
        ),
        (
            "step,worker,seconds",
            {"layout": "wide"},
            "no place for worker, seconds, use the long one",
        ),
        (
            "step,,w1",
            {"layout": "wide"},
            "the first line has '' where the name of a worker should be",
        ),
        ("Step,a,b", {"layout": "wide"}, "no column step: it has Step, a, b"),
        ("iteration,w1,w2", {"layout": "wide"}, "no column step: it has iteration"),
        ("w1,w2,w3", {"layout": "wide", "step": "time"}, "no column time"),
        ("step", {"layout": "wide"}, "no measured time"),
        (
            "0.2077,0.31,0.18",
            {"layout": "wide"},
            "the first line has '0.2077' .* put a header before",
        ),
        ("step,worker,worker", {}, "two columns 'worker'"),
        (
            "step,worker,seconds",
            {"layout": "tall"},
            "layout must be one of auto, long, wide, got 'tall'",
        ),
        ("step,worker,seconds", {"step": "worker"}, "must be different columns"),
        ("step,load,w1", {"layout": "wide", "load": None}, "no place for load, use"),
        (
            ",".join(f"column{i}" for i in range(5000)),
            {"layout": "long"},
            "column11, …",
        ),
    ],
)
def test_columns_that_are_not_there_or_not_meant(tmp_path, header, names, message):
    path = _write(tmp_path, f"{header}\n{','.join('7' for _ in header.split(','))}\n")
    with pytest.raises(ValueError, match=message):
        load_trace(path, **names)


BROKEN: dict[str, list[str | bytes]] = {
    "is empty": ["", "\n \n"],
    "no measured time: there are no rows": [
        _LONG,
        _LONG + "\n\n",
        _LONG + "1,a,\n2,a, \n",
    ],
    "line 3: seconds must be a positive number, got 'fast'": [
        _LONG + "1,a,2\n1,b,fast\n"
    ],
    "line 2: seconds must": [
        _LONG + f"1,a,{text}\n1,b,1\n"
        for text in ("0", "-1", "1_0", "inf", "nan", "1e999")
    ],
    "got '1,5': leave the cell empty where nothing was measured, and write a decimal "
    "comma": [_LONG.replace(",", ";") + "1;a;1,5\n"],
    "line 2: 4 fields, the header has 3 (separated by ',')": [_LONG + "1,a,1,5\n"],
    "line 3: 1 field, the header has 3": [
        _LONG + "1,a,1\n1\n",
        _LONG + "1,a,1\n1;b;2\n",
    ],
    "line 2: the label of a step, worker or chunk is empty": [
        _LONG + ",a,1\n",
        "step,w1,w2\n,2.5,3.5\n",
    ],
    "line 3: the label of a step, worker or chunk is empty": [_LONG + "1,a,1\n1, ,1\n"],
    "lines 2 and 7: step 1 has two times": [
        _LONG + "1,a,1\n2,b,1\n2,a,1\n2,b,\n\n1,a,3\n2,b,4\n"
    ],
    "not a CSV file: unexpected end of data": [_LONG + '1,a,1\n1,"b,2\n'],
    "line 2: not a CSV file": [_LONG + '1,"a"b,1\n'],
    "not a CSV file: field larger": [_LONG + f"1,{'a' * 200_000},1\n"],
    "not a text file (UTF-8)": [
        *(
            "a" * (1 << 21),
            b"PAR1" + bytes(100),
            _LONG.encode("utf-16"),
            _LONG.encode("utf-16-le"),
            b"\xff\xfe\x00\x81" * 50,
        ),
        _LONG.encode() + b"1,a,1\n" * 20_000 + b"\xff\n",
    ],
    "write a decimal comma as a point (worker w1)": ["step,w1,w2\n1,2.5,3.5\n2,x,1\n"],
    "is one JSON object over many lines, such as a plan": ['{\n "plan": 1\n}\n'],
    "lines 2 and 4: step 1 has two times of worker w2: leave out": [
        "step,w1,w2\n1,2,3\n2,1,1\n1,,4\n"
    ],
    "line 3: load must be a positive number, got '0'": [_LOADS + "1,a,10,1\n1,b,0,1\n"],
    "line 3: load is empty, and the time is not: how much was done": [
        _LOADS + "1,a,10,1\n2,a,,1\n"
    ],
    "lines 2 and 4: step 1 has two times of worker a that do not grow with the load": [
        _LOADS + "1,a,9,1\n2,a,9,1\n1,a,9,3\n"
    ],
    "lines 3 and 5: step 1 has two times of worker a that do not grow with the load": [
        _LOADS + "1,b,20,5\n1,a,20,2\n2,a,5,9\n1,a,10,2.5\n"
    ],
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_trace_is_refused_with_its_reason(tmp_path, message):
    for text in BROKEN[message]:
        with pytest.raises(ValueError, match=rf"trace\.csv.*{re.escape(message)}"):
            load_trace(_write(tmp_path, text))


def test_what_cannot_be_opened_is_an_error_of_the_system(tmp_path):
    with pytest.raises(IsADirectoryError):
        load_trace(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "trace.csv")


def test_one_step_or_one_worker_is_a_trace(tmp_path):
    assert load_trace(_write(tmp_path, _LONG + "1,a,2\n")).rows().tolist() == [[2.0]]
    assert load_trace(_write(tmp_path, "a\n2\n3\n"), layout="wide").rows().tolist() == [
        [2.0],
        [3.0],
    ]


def test_wide_files(tmp_path):
    expected = load_trace(_write(tmp_path, _LONG + "2,w10,1.5\n2,w9,2.5\n1,w9,3.5\n"))
    assert expected.worker_names.tolist() == ["w9", "w10"]
    _assert_equal(
        load_trace(_write(tmp_path, "step,w10,w9\n2,1.5,2.5\n1,,3.5\n")), expected
    )
    _assert_equal(
        load_trace(_write(tmp_path, "w10|step|w9\n1.5|2|2.5\n|1|3.5\n")), expected
    )
    path = _write(tmp_path, "iteration;b;a\n2;1.5;2.5\n1;;3.5\n")
    named = load_trace(path, layout="wide", step="iteration")
    assert (named.worker_names.tolist(), named.num_missing) == (["a", "b"], 1)
    _assert_equal(named._replace(worker_names=expected.worker_names), expected)
    counted = load_trace(_write(tmp_path, "gpu:0,gpu:1\n1.5,2.5\n,3.5\n\n4.5,\n"))
    assert counted.step_names.tolist() == ["1", "2", "3"]
    np.testing.assert_array_equal(
        counted.table(), [[1.5, 2.5], [np.nan, 3.5], [4.5, np.nan]]
    )
    assert load_trace(
        _write(tmp_path, "step,0,1\n1,1.5,2.5\n")
    ).worker_names.tolist() == ["0", "1"]


def test_rows_are_the_steps_of_the_trace(tmp_path):
    text = _LONG + "7,b,2.5\n7,a,1.25\n3,a,3.5\n3,b,0.75\n"
    assert load_trace(_write(tmp_path, text)).rows().tolist() == [
        [3.5, 0.75],
        [1.25, 2.5],
    ]
    missing = load_trace(_write(tmp_path, text.replace("0.75", "")))
    with pytest.raises(
        ValueError,
        match=r"step 3 has no whole time of worker b: a replay needs all\. Leave out "
        "the steps",
    ):
        missing.rows()
    np.testing.assert_array_equal(missing.table(), [[3.5, np.nan], [1.25, 2.5]])


def test_long_and_wide_give_the_same_trace(tmp_path):
    times = np.random.default_rng(0).gamma(2.0, 1.0, (300, 4)) * 10.0 ** np.arange(
        -9, 11, 5
    )
    step, worker = np.indices(times.shape).reshape(2, -1)
    rows = zip(step, worker, times.ravel().tolist(), strict=True)
    long = load_trace(
        _write(tmp_path, _LONG + "".join(f"{i},n{j}.org,{t!r}\n" for i, j, t in rows))
    )
    np.testing.assert_array_equal(long.rows(), times)
    wide = "step," + ",".join(f"n{j}.org" for j in range(4)) + "\n"
    wide += "".join(
        f"{i}," + ",".join(map(repr, row)) + "\n"
        for i, row in enumerate(times.tolist())
    )
    _assert_equal(load_trace(_write(tmp_path, wide)), long)


_SEED_FILE = (
    'step,worker,seconds,cut\n1,a,1.5,0\n1,"b c",2.5,1\n2,a,,no\n2,"b '
    'c",4e-3,yes\n10,a,7,0\n'
)


def _corrupt(data: bytes, rng: random.Random) -> bytes:
    special = [bytes([c]) for c in b',;|\t"\r\n\0 -.e5']
    for _ in range(rng.randint(1, 4)):
        i, lost = (
            rng.randrange(len(data) + 1),
            rng.choice([0, 1, rng.randint(1, 5), len(data)]),
        )
        data = (
            data[:i]
            + rng.choice([b"", bytes([rng.randrange(256)]), *special])
            + data[i + lost :]
        )
    return data


def test_corrupted_files_are_read_or_refused(tmp_path):
    messages = []
    for seed in range(300):
        path = _write(tmp_path, _corrupt(_SEED_FILE.encode(), random.Random(seed)))
        try:
            trace = load_trace(path, censored="cut")
        except ValueError as error:
            messages.append(str(error))
        else:
            assert trace.num_missing >= 0
            assert np.all(np.isfinite(trace.seconds) & (trace.seconds > 0))
    assert 100 < len(messages) < 300
    assert all(str(path) in message for message in messages)


def _piped(content: bytes) -> BinaryIO:
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as writer:
        writer.write(content)
    return open(read_end, "rb")


def test_compressed_files_and_streams_are_read_like_files(tmp_path):
    long_text = _LONG + "".join(
        f"{i},{name},{i + 1.25}\n" for i in range(10_000) for name in "ab"
    )
    read = load_trace(
        _write(tmp_path, gzip.compress(long_text.encode()), "trace.csv.gz")
    )
    np.testing.assert_array_equal(
        read.rows(), np.arange(10_000)[:, None] + np.full(2, 1.25)
    )
    text = long_text[:300].rpartition("\n")[0]
    plain, packed = load_trace(_write(tmp_path, text)), gzip.compress(text.encode())
    # by what it is, not by its name
    _assert_equal(load_trace(_write(tmp_path, packed, "trace.csv")), plain)
    for content in (text.encode(), packed):
        _assert_equal(load_trace(io.BytesIO(content)), plain)
        with _piped(content) as reader:
            _assert_equal(load_trace(reader), plain)


def test_what_is_no_whole_stream_is_refused(tmp_path):
    packed = gzip.compress(
        (_LONG + "".join(f"{i},a,{i + 1.25}\n" for i in range(5_000))).encode()
    )
    damaged = packed[:200] + b"\x00" * 200 + packed[400:]
    for content in (packed[:-20], packed[:12], damaged):
        with pytest.raises(ValueError, match=r"cut.csv.gz is not a whole gzip file: "):
            load_trace(_write(tmp_path, content, "cut.csv.gz"))
    with pytest.raises(
        ValueError, match="the stream, line 2: seconds must be a positive number"
    ):
        load_trace(io.BytesIO(f"{_LONG}1,a,fast\n".encode()))


def test_times_of_loads_one_or_several_of_a_cell(tmp_path):
    text = _LOADS + "2,a,100,1.5\n1,a,400,3.5\n1,b,200,2.5\n2,b,,\n"
    trace = load_trace(_write(tmp_path, text))
    assert not_none(trace.load).tolist() == [100.0, 400.0, 200.0]
    assert trace.step_names[trace.step].tolist() == ["2", "1", "1"]
    assert (trace.num_workers, trace.num_steps, trace.num_missing) == (2, 2, 1)
    np.testing.assert_array_equal(
        trace.per_cycle().table(), [[3.5 / 400, 2.5 / 200], [0.015, np.nan]]
    )
    for refused in (trace.table, trace.rows):
        with pytest.raises(
            ValueError,
            match="these are times of loads, no cycle times: take per_cycle",
        ):
            refused()
    # Block by block, in any order: what counts is the largest load of each cell.
    blocks = (
        "seconds,work,worker,step,cut\n5,30,a,1,1\n2,10,a,1,0\n4,20,a,1,0\n"
        "1,10,a,2,0\n1,20,a,2,0\n"
    )
    names: dict[str, Any] = {"load": "work", "censored": "cut"}
    trace = load_trace(_write(tmp_path, blocks), **names)
    assert (trace.num_missing, trace.seconds.size) == (0, 5)
    rates = trace.per_cycle()
    assert rates.load is None
    assert (rates.seconds.tolist(), rates.censored.tolist()) == (
        [5 / 30, 1 / 20],
        [True, False],
    )
    largest = trace.largest_loads()
    assert (not_none(largest.load).tolist(), largest.seconds.tolist()) == (
        [30.0, 20.0],
        [5.0, 1.0],
    )
    # Without its name it is a column like others; a trace without loads is its own
    # cycle times.
    plain = load_trace(_write(tmp_path, "step,worker,seconds,work\n1,a,2,3\n"))
    assert plain.load is None
    assert plain.per_cycle() is plain
