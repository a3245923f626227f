"""A line between programs: whoever has no key, or sends nonsense, harms nobody."""

import math
import socket
import struct
import threading

import pytest

from bcgc_jax.balancing.dispatch.line import (
    GREETING,
    MOST,
    NONCE,
    Frames,
    TcpLine,
    framed,
    proof,
)
from bcgc_jax.balancing.dispatch.messages import (
    Answer,
    Begin,
    Copies,
    Done,
    Join,
    OwnDone,
    Seat,
    TakeSeat,
    answer_of,
    data_of,
    question_of,
    wrong_loads,
)
from bcgc_jax.balancing.dispatch.server import Server


class Echo:
    """Keeps "wait" waiting until "go" comes."""

    def __init__(self):
        self.waiting = []

    def asked(self, message, reply):
        if message == "nonsense":
            raise ValueError
        if message == "wait":
            self.waiting.append(reply)
            return
        reply(message)
        if message == "go":
            self.waiting.pop()("gone")

    def left(self, reply):
        pass

    def look(self):
        return math.inf


@pytest.fixture
def server():
    server = Server(Echo(), "127.0.0.1", 0, b"key")
    yield server
    server.close()


def _greet(server):
    """A socket that has shown that it has the key."""
    caller = socket.create_connection(server.address, timeout=5.0)
    nonce = caller.recv(NONCE, socket.MSG_WAITALL)
    own_nonce = bytes(NONCE)
    greeting = own_nonce + proof(server.key, b"calls", own_nonce, nonce)
    caller.sendall(greeting[:7])
    caller.sendall(greeting[7:])
    assert len(caller.recv(GREETING - NONCE, socket.MSG_WAITALL)) == GREETING - NONCE
    return caller


def _is_closed(caller):
    with caller:
        try:
            return caller.recv(1) == b""
        except ConnectionResetError:
            return True


def test_an_answer_may_come_later_while_others_ask(server):
    late_answers = []
    waiting_line, second_line = (TcpLine(server.address, server.key) for _ in range(2))
    thread = threading.Thread(
        target=lambda: late_answers.append(waiting_line.ask("wait"))
    )
    thread.start()
    while not server.answers.waiting:
        assert second_line.ask({"a": [1, None, 0.1]}) == {"a": [1, None, 0.1]}
    assert second_line.ask("go") == "go"
    thread.join()
    assert late_answers == ["gone"]
    waiting_line.close()
    second_line.close()


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("!I", MOST + 1),
        struct.pack("!I", 3) + b"{[(",
        struct.pack("!I", 2) + b"\xff\xff",
        struct.pack("!I", 60_000) + b"[" * 60_000,
        framed("nonsense"),
    ],
)
def test_nonsense_ends_the_line_of_whoever_has_sent_it(server, sent):
    line = TcpLine(server.address, server.key)
    caller = _greet(server)
    caller.sendall(framed(1))
    assert caller.recv(5, socket.MSG_WAITALL) == framed(1)
    caller.sendall(sent)
    assert _is_closed(caller)
    assert line.ask(2) == 2
    line.close()


def test_whoever_has_another_key_is_refused_on_both_sides(server):
    with pytest.raises(ConnectionError, match="refuses the key"):
        TcpLine(server.address, b"another")
    caller = socket.create_connection(server.address, timeout=5.0)
    caller.recv(NONCE, socket.MSG_WAITALL)
    caller.sendall(bytes(GREETING))
    assert _is_closed(caller)
    with socket.create_server(("127.0.0.1", 0)) as program:

        def answer():
            called, _ = program.accept()
            with called:
                called.sendall(bytes(NONCE))
                called.recv(GREETING, socket.MSG_WAITALL)
                called.sendall(bytes(32))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match="another program"):
            TcpLine(program.getsockname(), server.key)
        thread.join()


def test_a_server_that_ends_ends_its_lines(server):
    line = TcpLine(server.address, server.key)
    server.close()
    server.close()  # by a thread that does not know yet
    with pytest.raises(ConnectionError, match="gone"):
        line.ask(1)
    line.close()


def test_messages_come_whole_however_they_are_cut():
    messages = [[], ["ä" * 300], 1.5, None]
    data = b"".join(map(framed, messages))
    frames = Frames()
    decoded = []
    for k in range(len(data)):
        decoded += frames.feed(data[k : k + 1])
    assert decoded == messages


def test_a_message_has_64_kibibytes_at_most():
    message = "x" * (65_536 - len('""'))
    assert Frames().feed(framed(message)) == [message]
    with pytest.raises(ValueError, match="65537 bytes"):
        Frames().feed(framed(f"{message}x"))


def test_both_ends_notice_that_the_other_machine_has_vanished(server):
    """A process that ends closes its line; for a dead machine the system probes it."""
    line = TcpLine(server.address, server.key)
    (called,) = server.lines
    for end in (line._socket, called._socket):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        silent = [
            end.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{of}"))
            for of in ("IDLE", "INTVL", "CNT")
        ]
        assert silent[0] + silent[1] * silent[2] <= 20
        unsent = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert 0 < unsent <= 20_000
    line.close()


@pytest.mark.parametrize(
    "data",
    [
        *(
            None,
            [],
            {},
            ["over"],
            [1, 2, 3],
            ["join", 0],
            ["join", True, 0],
            ["begin", 1],
        ),
        *(["done", [1, None], 0.0], ["done", [1, 2, 3], 0.0], ["done", [1, 2], True]),
        ["done", [1, 2], 1.5e9],  # 48 years
    ],
)
def test_what_is_no_question_is_refused(data):
    with pytest.raises(ValueError, match="no message"):
        question_of(data)


def test_a_load_that_no_data_have_is_refused():
    assert wrong_loads([0.9e100], 1) == ""
    assert wrong_loads([1.5e100], 1).endswith("got 1.5e+100")


def test_questions_and_answers_are_the_same_on_the_other_side():
    for question in (
        Join(3, "red"),
        TakeSeat(),
        Begin(3),
        Begin(4, [1.5, 2.0]),
        Done((1, 7), 0.5),
        OwnDone(5, 0.5, [1.0]),
        Copies(5, [[0, 1, -7]]),
    ):
        assert question_of(Frames().feed(framed(data_of(question)))[0]) == question
    seat = Seat(2, 2, (0.5, 1.0), ((0, 0), (0, 1)), 1.0)
    for answer in (
        *(
            Answer(over=True),
            Answer((1, 2), (3, 4)),
        ),
        *(Answer(seat=seat), Answer(failed="a worker is gone")),
    ):
        assert answer_of(Frames().feed(framed(answer))[0]) == answer
