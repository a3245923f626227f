"""Signals, private folders and waits for what does not answer, without Ray."""

import gc
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from bcgc_jax.cluster import engine, signals
from bcgc_jax.cluster.engine import is_safe, private_folder
from tests.raising import raising
from tests.signals import ctrl_c

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGHUP"), reason="a system without these signals"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_process_ends_it_in_order(number):
    before = signal.signal(number, signal.SIG_DFL)  # ignored under nohup
    with pytest.raises(SystemExit) as end, signals.handled():
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number
    assert signal.signal(number, before) == signal.SIG_DFL


def test_signals_that_are_ignored_or_the_callers_own_are_left_alone():
    came: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with signals.handled(), signals.held_back():
            for number in before:
                os.kill(os.getpid(), number)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def test_a_signal_that_another_answers_while_processes_start_is_heard(monkeypatch):
    """Ray sets its own answer. What this raises in a callback is printed and lost."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    class Swallowing:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    went_on: list[int] = []
    before = signal.getsignal(signal.SIGTERM)

    def start():
        with signals.held_back():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            Swallowing()
            went_on.append(1)

    with pytest.raises(SystemExit) as end, signals.handled():
        start()
    assert (end.value.code, went_on) == (128 + signal.SIGTERM, [1])
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_is_heard_though_the_garbage_collector_swallows_it(monkeypatch):
    """JAX has a callback there: what it raises Python prints, and goes on."""

    def swallow(phase, info):
        if phase == "start":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    def wait(count):
        with signals.listening():
            gc.callbacks.append(swallow)
            try:
                gc.collect(0)
            finally:
                gc.callbacks.remove(swallow)
            for _ in range(count):
                went_on.append(1)
                signals.check()

    for count in (2, 0):  # at the next wait, and at the end where there is none
        went_on: list[int] = []
        with ctrl_c(), signals.handled(), pytest.raises(KeyboardInterrupt):
            wait(count)
        assert len(went_on) == min(count, 1)


@pytest.mark.parametrize(("letters", "is_taken"), [(18, True), (24, False)])
def test_a_folder_is_where_its_path_leaves_room_for_that_of_a_socket(
    letters, is_taken, tmp_path, monkeypatch
):
    """A socket's path has 103 letters at most, of which Ray adds some 70."""
    place = Path("/tmp", secrets.token_hex(letters)[: letters - len("/tmp/")])
    place.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        with private_folder() as folder:
            assert (Path(folder).parent == place) == is_taken
    finally:
        place.rmdir()


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setattr(engine, "_SHORT", 10_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = {name: tmp_path / f"bcgc-{name}" for name in ("left", "open", "young")}
    for name, path in folders.items():
        path.mkdir(mode=0o755 if name == "open" else 0o700)
        if name != "young":  # one that is being made
            (path / "lock").touch()
    kept = {folders["open"], folders["young"]}
    remove = shutil.rmtree
    tried = []

    def in_vain_at_first(path, **options):
        tried.append(path)
        if tried.count(path) > 1:
            remove(path, **options)

    with private_folder() as first_folder, private_folder() as second_folder:
        assert is_safe(second_folder, private=True)
        assert set(tmp_path.iterdir()) == kept | {
            Path(first_folder),
            Path(second_folder),
        }
        monkeypatch.setattr(shutil, "rmtree", in_vain_at_first)
    assert set(tmp_path.iterdir()) == kept


def test_what_a_killed_process_left_and_its_children_still_write_to_is_swept_later(
    tmp_path,
):
    left = tmp_path / "bcgc-left"
    left.mkdir(mode=0o700)
    (left / "lock").touch()
    (left / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rmdir", raising(OSError("Directory not empty")))
        engine._sweep(str(tmp_path))
    assert left.exists()
    engine._sweep(str(tmp_path))
    assert not left.exists()


def test_rays_processes_in_what_a_killed_process_left_end_before_it_is_swept(tmp_path):
    left = tmp_path / "bcgc-left"
    left.mkdir(mode=0o700)
    (left / "lock").touch()
    writes = (
        "for _ in range(500): os.makedirs(sys.argv[2], exist_ok=True); "
        "print(flush=True); sleep(0.01)"
    )
    program = "import os, sys; from time import sleep\n" + writes
    agent = [sys.executable, "-c", program, "/any/ray/agent.py", left / "ray"]
    with subprocess.Popen(agent, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        engine._sweep(str(tmp_path))
        assert process.wait() == -signal.SIGKILL
    engine._sweep(str(tmp_path))
    assert not left.exists()


def test_a_folder_that_others_can_write_to_is_not_safe(tmp_path):
    for mode, safe in ((0o700, True), (0o755, True), (0o775, False), (0o777, False)):
        tmp_path.chmod(mode)
        assert is_safe(str(tmp_path)) == safe
    (tmp_path / "link").symlink_to(tmp_path)
    assert not is_safe(str(tmp_path / "link"))
    assert not is_safe(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"", "no Ray cluster answers"), (b"220 mail\r\n", "no Ray.*another program")],
)
def test_who_listens_and_is_not_ray_is_told_soon(monkeypatch, answer, words):
    monkeypatch.setattr(engine, "_PATIENCE", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        if answer:
            monkeypatch.setattr(socket.socket, "recv", lambda *_: answer[:9])
        with pytest.raises(ConnectionError, match=words):
            engine._check_answers(address)
        assert time.monotonic() - begin < 10


def test_a_cluster_that_refuses_the_connection_may_want_a_token(monkeypatch):
    monkeypatch.setattr(engine, "_check_answers", lambda _: None)
    ray = SimpleNamespace(init=raising(ConnectionError()), shutdown=lambda: None)
    with (
        pytest.raises(ConnectionError, match="set RAY_AUTH_MODE=token"),
        ExitStack() as stack,
    ):
        engine._start(ray, stack, "127.0.0.1:1", 1, 0)


def test_threads_start_ray_once_and_the_last_one_ends_it(monkeypatch):
    running: list[int] = []
    barrier = threading.Barrier(2, timeout=60)
    ray = SimpleNamespace(is_initialized=lambda: bool(running))

    def start(ray, stack, *_):
        time.sleep(0.1)
        running.append(1)
        stack.callback(running.clear)

    def use(_):
        with engine.session(None, 1, 0):
            barrier.wait()
            return len(running)

    monkeypatch.setattr(engine, "load_ray", lambda local: ray)
    monkeypatch.setattr(engine, "_start", start)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(use, range(2))) == [1, 1]
    assert running == []


def test_a_token_is_the_users_own_or_one_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    engine._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    engine._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == engine._TOKEN
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("one that was there")
    engine._have_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
