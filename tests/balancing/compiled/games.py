"""Random games: a gradient with shared work, with faults, against
`jax.value_and_grad`.

`python -m tests.balancing.compiled.games SEED…` prints a line of JSON for each game.
The number of devices and the precision are those of the process, and belong to the
game.
"""

import contextlib
import itertools
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled import SharedWork
from bcgc_jax.balancing.dispatch import Memory, Share, StepFailed, join, serve
from tests.balancing.compiled.game_losses import (
    HALF,
    HIDDEN,
    SPECS,
    Expected,
    Model,
    Oracle,
    draw_batch,
    draw_params,
    pieces,
    step_key,
    unit_of,
)

KEY = jax.random.key(7)
# Seconds of silence after which a worker is lost, in games with such a fault.
TIMEOUT = 4.0
# Largest relative errors, in units of the largest number of an array.
EXACT = {"float32": 1e-6, "float64": 1e-13}
FAULTS = ("coordinator", "share", "loader", "taken", "rejoined", "silent")


class Fault(NamedTuple):
    """What happens to a step, and how the game goes on.

    Attributes:
      kind: One of `FAULTS`.
      worker: The worker whose handle is lost, or in whose turn it happens.
      when: "before" the step, in a "turn", at the "end" of the worker's turns, or some
        "time" after the beginning.
      turn: The number of that turn.
      seconds: That time.
      is_elsewhere: Whether another thread does it while the turn goes on.
      calls: How many steps are tried before the reset.
      closes: Whether the old handles are closed before new ones join.
    """

    kind: str
    worker: int
    when: str
    turn: int
    seconds: float
    is_elsewhere: bool
    calls: int
    closes: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, workers: int, is_served: bool) -> "Fault":
        kinds = FAULTS if is_served else ("coordinator", "share", "loader")
        kind = str(rng.choice(kinds))
        whens = ["before", "turn", "turn", "end", "time"]
        if kind in ("loader", "silent"):
            whens = ["turn", "turn", "end"]
        return cls(
            kind=kind,
            worker=int(rng.integers(workers)),
            when=str(rng.choice(whens)),
            turn=int(rng.integers(4)),
            seconds=float(rng.random() * 0.02),
            is_elsewhere=bool(rng.random() < 0.5),
            calls=int(rng.integers(1, 3)),
            closes=bool(rng.random() < 0.5),
        )


class Setting(NamedTuple):
    """What a game is played with."""

    seed: int
    workers: int
    group: int  # devices of a worker
    kind: str  # type of the axes
    tensor: str | None  # which program shards the parameters over a group
    max_subsets: int
    chunks: int
    equal_chunks: bool
    adapt: bool
    param_dtype: str
    data_dtype: str
    placed: str
    has_loads: bool
    steps: int  # of a program
    donates: bool
    is_served: bool
    is_checked: bool
    slow: tuple[float, ...]  # seconds that each worker sleeps for each chunk
    model: Model
    faults: tuple[Fault, ...]

    @classmethod
    def draw(cls, seed: int, devices: int, is_wide: bool) -> "Setting":
        rng = np.random.default_rng([seed, devices, is_wide])
        most_workers = min(4, devices)
        workers = int(rng.integers(1, most_workers + 1))
        group = int(rng.choice([n for n in (1, 2, 3, 4) if n * workers <= devices]))
        dtypes = ["float32", "float32", *HALF]
        if is_wide:
            dtypes = ["float64", "float32"]
        param_dtype, data_dtype = (str(rng.choice(dtypes)) for _ in range(2))
        tensors = [None, "partitioner", "manual"]
        tensor = tensors[rng.integers(3)] if group > 1 and HIDDEN % group == 0 else None
        kind = str(rng.choice(["Auto", "Explicit"]))
        if is_half(param_dtype, data_dtype) and tensor is not None:
            tensor, kind = "partitioner", "Auto"
        is_served = bool(rng.random() < 0.6)
        slow = rng.choice([0.0, 0.0, 0.002, 0.01], workers)
        num_faults = rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1])
        return cls(
            seed=seed,
            workers=workers,
            group=group,
            kind=kind,
            tensor=tensor,
            max_subsets=int(rng.integers(1, workers + 1)),
            chunks=int(rng.choice([1, 2, 3, 4, 8])),
            equal_chunks=bool(rng.random() < 0.6),
            adapt=bool(rng.random() < 0.5),
            param_dtype=param_dtype,
            data_dtype=data_dtype,
            placed=str(rng.choice(["host", "device", "sharded", "part", "by hand"])),
            has_loads=bool(rng.random() < 0.3),
            steps=int(rng.choice([1, 1, 3])),
            donates=bool(rng.random() < 0.3),
            is_served=is_served,
            is_checked=bool(rng.random() < 0.7),
            slow=tuple(slow.tolist()),
            model=Model.draw(rng),
            faults=tuple(
                Fault.draw(rng, workers, is_served) for _ in range(num_faults)
            ),
        )

    @property
    def is_cut(self) -> bool:
        """Whether the last chunk of a subset is cut."""
        return not self.equal_chunks and self.max_subsets > 1

    @property
    def num_rows(self) -> int:
        return self.workers * self.chunks * (4 if self.is_cut else 1) * 3


def is_half(*dtypes: str) -> bool:
    return any(dtype in HALF for dtype in dtypes)


class Team:
    """The workers of a game, and what happens to them."""

    def __init__(self, setting: Setting, mesh: Mesh, rng: np.random.Generator) -> None:
        self.setting = setting
        self._rng = rng
        self._fault: Fault | None = None
        self._happens = threading.Lock()
        self._others: list[Share] = []
        self._has_silence = any(fault.kind == "silent" for fault in setting.faults)
        plan: dict[str, Any] = {
            "max_subsets": setting.max_subsets,
            "chunks": setting.chunks,
            "equal_chunks": setting.equal_chunks,
            "adapt": setting.adapt,
        }
        self._plan = plan
        if setting.is_served:
            self._serve()
            self.shared = SharedWork(mesh, shares=self._joined())
        else:
            self.shared = SharedWork(mesh, **plan)
        self._watch()

    @property
    def coordinator(self) -> Any:
        if self.setting.is_served:
            return self._served
        return self.shared.coordinator

    def arm(self, fault: Fault) -> None:
        """Let a fault happen in, or before, the next step."""
        self._fault = fault
        if fault.when == "before":
            self._happen()
        if fault.when == "time":
            threading.Timer(fault.seconds, self._happen).start()

    def disarm(self) -> None:
        self._fault = None

    def reset(self, fault: Fault) -> None:
        """Go on as the documentation says."""
        is_silence = fault.kind == "silent"
        if not self.setting.is_served or (
            is_silence and isinstance(self.shared.error, StepFailed)
        ):
            self.shared.reset()
        else:
            if fault.kind == "coordinator":
                self._serve()
            if fault.closes:
                for share in self.shared.shares.values():
                    share.close()
            self.shared.reset(self._joined())
        self._watch()

    def close(self) -> None:
        self.coordinator.close()

    def _serve(self) -> None:
        self._memory = Memory()
        self._served = serve(
            self.setting.workers,
            transport=self._memory,
            timeout=TIMEOUT if self._has_silence else 60.0,
            **self._plan,
        )

    def _joined(self) -> dict[int, Share]:
        """Handles that have joined one after the other."""
        order = self._rng.permutation(self.setting.workers).tolist()
        return {worker: self._join(worker) for worker in order}

    def _join(self, worker: int) -> Share:
        return join(self._served.address, worker, transport=self._memory)

    def _watch(self) -> None:
        for worker, share in self.shared.shares.items():
            if not hasattr(share, "is_watched"):
                runs = self._watched(worker, share.runs)
                share.runs = runs  # type: ignore[method-assign]
                share.is_watched = True  # type: ignore[attr-defined]

    def _watched(self, worker: int, runs_of: Callable[..., Any]) -> Any:
        def runs(step: int, loads: Any = None) -> Iterator[Any]:
            for turn, run in enumerate(runs_of(step, loads)):
                self._take_turn(worker, "turn", turn)
                if self.setting.slow[worker]:
                    time.sleep(self.setting.slow[worker] * len(run))
                yield run
            self._take_turn(worker, "end", 0)

        return runs

    def _take_turn(self, worker: int, when: str, turn: int) -> None:
        fault = self._fault
        if fault is None or (fault.worker, fault.when) != (worker, when):
            return
        if when == "turn" and turn < fault.turn:
            return
        if fault.kind == "loader":
            self._fault = None
            raise OSError("the disk is gone")
        if fault.kind == "silent":
            self._fault = None
            time.sleep(2 * TIMEOUT)
        elif fault.is_elsewhere:
            threading.Thread(target=self._happen).start()
        else:
            self._happen()

    def _happen(self) -> None:
        with self._happens:
            fault, self._fault = self._fault, None
            if fault is None:
                return
            with contextlib.suppress(ConnectionError):
                self._do(fault)

    def _do(self, fault: Fault) -> None:
        if fault.kind == "coordinator":
            self.coordinator.close()
        elif fault.kind == "share":
            self.shared.shares[fault.worker].close()
        elif fault.kind == "taken":
            self._others.append(self._join(fault.worker))
        elif fault.kind == "rejoined":
            self._others += self._joined().values()


class Step(NamedTuple):
    """What one step of a program has returned."""

    params: Any
    results: Any
    ok: bool


class Program:
    """The compiled program of a game: some steps of gradient descent."""

    def __init__(self, setting: Setting, mesh: Mesh, shared: SharedWork) -> None:
        self._setting = setting
        self._mesh = mesh
        model = setting.model
        specs = None
        dot: Callable[[Any, Any], Any] = jnp.matmul
        if setting.tensor == "manual":
            specs = {name: SPECS.get(name, P()) for name in SHAPES}
            dot = _psum
        elif setting.tensor is not None and setting.kind == "Explicit":
            dot = _whole
        self._gradient = shared.value_and_grad(
            model.loss(dot),
            reduction=model.reduction,  # type: ignore[arg-type]
            has_aux=model.aux is not None,
            check=setting.is_checked,
            params=specs,
        )
        self._run = jax.jit(self._steps, donate_argnums=(0,) if setting.donates else ())
        self._has_key = model.has_dropout

    def put(self, params: Any) -> Any:
        """Parameters on the devices."""
        specs = {} if self._setting.tensor is None else SPECS
        return {
            name: jax.device_put(x, NamedSharding(self._mesh, specs.get(name, P())))
            for name, x in params.items()
        }

    def __call__(self, params: Any, stored: Any, step: int, loads: Any) -> list[Step]:
        with jax.set_mesh(self._mesh):
            results = self._run(self.put(params), stored, step, KEY, loads)
            _, befores, results, oks = jax.block_until_ready(results)
        for leaf in jax.tree.leaves((befores, results, oks)):
            _same_on_all_devices(leaf)
        params_of, results_of, oks = jax.tree.map(np.asarray, (befores, results, oks))
        return [
            Step(_entry(params_of, place), tuple(_entry(results_of, place)), bool(ok))
            for place, ok in enumerate(oks)
        ]

    def _steps(self, params: Any, stored: Any, first: Any, key: Any, loads: Any) -> Any:
        # Small, because the gradient near an optimum is small beside those of rows.
        rate = 1e-3
        if self._setting.model.reduction == "sum":
            rate /= self._setting.num_rows

        def step(params: Any, number: Any) -> Any:
            keys = (key,) if self._has_key else ()
            *results, ok = self._gradient(params, stored, number, *keys, loads=loads)
            move = lambda p, g: jnp.where(ok, p - rate * g, p).astype(p.dtype)  # noqa: E731
            return jax.tree.map(move, params, results[1]), (params, results, ok)

        if self._setting.steps == 1:
            params, results = step(params, first)
            return params, *jax.tree.map(lambda x: x[None], results)
        numbers = first + jnp.arange(self._setting.steps)
        params, results = lax.scan(step, params, numbers)
        return params, *results


def _entry(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda x: x[place], tree)


def _psum(x: Any, weights: Any) -> Any:
    return lax.psum(x @ weights, "model")


def _whole(x: Any, weights: Any) -> Any:
    return jnp.matmul(x, weights, out_sharding=P(*(None,) * x.ndim))


SHAPES = draw_params(np.random.default_rng(0), "float32")


def _same_on_all_devices(x: Any) -> None:
    copies: dict[str, np.ndarray] = {}
    for shard in x.addressable_shards:
        shard_data = np.asarray(shard.data)
        first = copies.setdefault(str(shard.index), shard_data)
        if shard_data.tobytes() != first.tobytes():
            raise AssertionError("two devices have different copies of a result")


class Game:
    """A game, and what was found in it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        rng = np.random.default_rng([setting.seed, 1])
        model = setting.model
        self.params = draw_params(rng, setting.param_dtype)
        self.batch = draw_batch(rng, model.head, setting.num_rows, setting.data_dtype)
        kind = AxisType[setting.kind]
        devices = np.array(jax.devices()[: setting.workers * setting.group])
        axes = ("data", "model")[: 2 if setting.group > 1 else 1]
        shape = (setting.workers, setting.group)[: len(axes)]
        mesh = Mesh(devices.reshape(shape), axes, axis_types=(kind,) * len(axes))
        self.mesh = mesh
        self.team = Team(setting, mesh, rng)
        self.program = Program(setting, mesh, self.team.shared)
        group = devices[: setting.group] if setting.tensor else ()
        self.oracle = Oracle(model, group)
        self.loads = None
        if setting.has_loads:
            lengths = len(self.team.shared.shares[0].own)
            self.loads = rng.random((setting.workers, lengths)).astype(np.float32) + 0.5
        self.stored = self._placed()
        self.step = int(rng.choice([0, 1000]))
        self.wrong: list[str] = []
        self.said: list[str] = []
        self.worst: dict[str, float] = {}
        self.resets: list[tuple[str, float]] = []
        self.failures = 0
        self.compared = 0

    def play(self) -> dict[str, Any]:
        self._call("first", must_be_ok=True)
        self._call("second", must_be_ok=True)
        for fault in self.setting.faults:
            self._fault(fault)
        self.team.close()
        return {
            "wrong": self.wrong,
            "said": self.said,
            "worst": self.worst,
            "resets": self.resets,
            "failures": self.failures,
            "compared": self.compared,
        }

    def _fault(self, fault: Fault) -> None:
        self.team.arm(fault)
        name = f"{fault.kind} {fault.when}"
        for call in range(fault.calls):
            self._call(f"{name}, call {call}")
        self.team.disarm()
        began = time.perf_counter()
        say(at=f"{name}, reset")
        self.team.reset(fault)
        if self.team.shared.error is not None:
            self.wrong.append(f"{name}: the error stays after reset")
        self._call(f"{name}, after reset", must_be_ok=True)
        self.resets.append((fault.kind, time.perf_counter() - began))
        self._call(f"{name}, second after reset", must_be_ok=True)

    def _call(self, name: str, must_be_ok: bool = False) -> None:
        say(at=name)
        began = time.perf_counter()
        steps = self.program(self.params, self.stored, self.step, self.loads)
        seconds = time.perf_counter() - began
        error = self.team.shared.error
        say(at=f"the comparison of {name}")
        for place, step in enumerate(steps):
            if step.ok:
                self._compare(f"{name} {place}", step, self.step + place)
            else:
                self.failures += 1
                self._expect_nothing(f"{name} {place}", step, error)
        if must_be_ok and not all(step.ok for step in steps):
            self.wrong.append(f"{name}: not ok: {error!r}")
        if all(step.ok for step in steps) and must_be_ok and error is not None:
            self.wrong.append(f"{name}: ok, but error is {error!r}")
        if error is not None:
            self.said.append(f"{name}: {error!r}")
        if must_be_ok is False and seconds > 5.0 + 2 * TIMEOUT:
            self.wrong.append(f"{name}: took {seconds:.1f} s")
        self.step += self.setting.steps * all(step.ok for step in steps)

    def _expect_nothing(self, name: str, step: Step, error: Any) -> None:
        for leaf in jax.tree.leaves(step.results):
            is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
            if is_float and not np.isnan(leaf.astype(np.float32)).all():
                self.wrong.append(f"{name}: not ok, but not NaN")
        if error is None:
            self.wrong.append(f"{name}: not ok without an error")

    def _compare(self, name: str, step: Step, number: int) -> None:
        self.compared += 1
        setting = self.setting
        key = step_key(KEY, number)
        types = self.oracle.types(step.params, self.batch, key)
        kinds = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)  # noqa: E731
        if kinds(step.results) != kinds(types):
            self.wrong.append(
                f"{name}: types are {kinds(step.results)}, not {kinds(types)}"
            )
            return
        whole_or_by_chunks = self.oracle.exact
        if is_half(setting.param_dtype, setting.data_dtype):
            whole_or_by_chunks = self.oracle.by_chunks
        best: dict[str, float] = {}
        for is_cut in {setting.is_cut, False}:
            chunks = pieces(
                setting.workers, setting.chunks, setting.num_rows, is_cut=is_cut
            )
            expected = whole_or_by_chunks(step.params, self.batch, key, chunks)
            errors = errors_of(step.results, expected)
            if not best or max(errors.values()) < max(best.values()):
                best = errors
        for kind, error in best.items():
            self.worst[kind] = max(error, self.worst.get(kind, 0.0))
            if not error <= EXACT.get(kind, 1.0):
                self.wrong.append(f"{name}: error {error:.2g} in {kind}")

    def _placed(self) -> Any:
        setting, shared = self.setting, self.team.shared
        batch: Any = self.batch
        if setting.placed == "by hand":
            index = list(itertools.chain(*shared.rows(setting.num_rows).values()))
            sharding = NamedSharding(self.mesh, P("data"))
            if len({len(x) for x in shared.rows(setting.num_rows).values()}) == 1:
                return jax.tree.map(
                    lambda x: jax.device_put(x[index], sharding), self.batch
                )
        if setting.placed == "device":
            batch = jax.tree.map(jnp.asarray, batch)
        if setting.placed == "sharded":
            sharding = NamedSharding(self.mesh, P("data"))
            batch = jax.tree.map(lambda x: jax.device_put(x, sharding), batch)
        return shared.place(batch, is_part=setting.placed == "part")


def errors_of(results: Any, expected: Expected) -> dict[str, float]:
    """The largest error for each type: relative to the largest number of an array, or
    for half precision relative to what a rounding, of the sum and of a chunk, allows.
    """
    errors: dict[str, float] = {}
    leaves = zip(
        jax.tree.leaves(results),
        jax.tree.leaves(expected.results),
        jax.tree.leaves(expected.slack),
        strict=True,
    )
    for leaf, exact, slack in leaves:
        kind = str(leaf.dtype)
        off = np.abs(np.asarray(leaf, np.float64) - exact)
        if kind in HALF:
            error = (off / (0.5 * unit_of(leaf) * (1 + 1e-3) + slack)).max()
        elif np.issubdtype(leaf.dtype, np.integer):
            error, kind = off.max(), "integers"
        else:
            largest = np.abs(exact).max()  # 0 for parameters that are not used
            error = off.max() / (largest or 1.0)
        errors[kind] = max(float(error), errors.get(kind, 0.0))
    return errors


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def play(setting: Setting) -> dict[str, Any]:
    try:
        return Game(setting).play()
    except Exception:
        return {"wrong": [traceback.format_exc()]}


def main(seeds: list[str]) -> None:
    is_wide = jnp.zeros(()).dtype == np.float64
    for seed in map(int, seeds):
        setting = Setting.draw(seed, jax.device_count(), is_wide)
        say(begins=seed, setting=setting._asdict())
        began = time.perf_counter()
        result = play(setting)
        say(ends=seed, seconds=time.perf_counter() - began, **result)


if __name__ == "__main__":
    main(sys.argv[1:])
