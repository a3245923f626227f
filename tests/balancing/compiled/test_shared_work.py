"""A gradient of a program with shared work, on one device: for all versions of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled import SharedWork
from bcgc_jax.balancing.compiled.layout import layout_of
from bcgc_jax.balancing.compiled.losses import LossCheck, checksum
from bcgc_jax.balancing.compiled.questions import Program, Questions
from bcgc_jax.balancing.dispatch import Memory, join, serve

SAMPLES = 32
INPUTS = np.random.default_rng(0).standard_normal((SAMPLES, 3)).astype(np.float32)
WEIGHTS = np.array([0.5, -1.0, 2.0], np.float32)


def mean_of(weights, rows):
    return jnp.mean(jnp.tanh(rows @ weights))


def mesh_of_one(*axes, kind=AxisType.Auto):
    kinds = (kind,) * len(axes)
    return jax.make_mesh(
        (1,) * len(axes), axes, axis_types=kinds, devices=jax.devices()[:1]
    )


def shared_work(**keywords):
    return SharedWork(mesh_of_one("data"), chunks=4, max_subsets=1, **keywords)


def test_lengths_of_chunks_may_be_on_the_host_if_axes_are_explicit():
    mesh = mesh_of_one("data", kind=AxisType.Explicit)
    shared = SharedWork(mesh, chunks=4)
    gradient = jax.jit(shared.value_and_grad(mean_of, check=False))
    stored = shared.place(INPUTS)
    sent = []
    runs_of = shared.shares[0].runs

    def noted(step, loads=None):
        sent.append(loads)
        return runs_of(step, loads)

    shared.shares[0].runs = noted  # type: ignore[method-assign]
    loads = np.array([[1.0, 2.0, 3.0, 4.0]])
    with jax.set_mesh(mesh):
        _, slope, ok = gradient(WEIGHTS, stored, 0, loads=loads)
    outputs = np.tanh(INPUTS @ WEIGHTS.astype(float))
    np.testing.assert_allclose(slope, (1 - outputs**2) @ INPUTS / SAMPLES, rtol=1e-6)
    assert (bool(ok), sent) == (True, loads.tolist())


def said(gradient, *arguments):
    try:
        jax.eval_shape(gradient, *arguments)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("reduction", "value", "verb"),
    [
        ("mean", jnp.int32(3), "averaged"),
        ("mean", jnp.bool_(True), "averaged"),
        ("sum", jnp.bool_(True), "summed"),
        ("sum", jnp.uint8(3), "summed"),
    ],
)
def test_an_auxiliary_value_that_has_no_such_sum_is_refused_by_name(
    reduction, value, verb
):
    gradient = shared_work().value_and_grad(
        lambda weights, rows: (mean_of(weights, rows), {"ends": [value]}),
        reduction=reduction,
        has_aux=True,
    )
    text = said(gradient, WEIGHTS, INPUTS, 0)
    assert f"`aux['ends'][0]` has the type {value.dtype}, which cannot be" in text
    assert verb in text


@pytest.mark.parametrize("check", [True, False])
def test_an_auxiliary_value_of_each_row_is_refused_by_name(check):
    gradient = shared_work().value_and_grad(
        lambda weights, rows: (mean_of(weights, rows), {"logits": rows @ weights}),
        has_aux=True,
        check=check,
    )
    text = said(gradient, WEIGHTS, INPUTS, 0)
    assert "`aux['logits']` has the shape (8,) for 8 rows, but (16,) for 16" in text


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_the_first_step_finds_a_loss_that_has_the_other_reduction(reduction, rows):
    """`rows` are those of a chunk: one, an odd number, or an even one."""
    other_reduction = {"mean": jnp.sum, "sum": jnp.mean}[reduction]
    inputs = np.resize(INPUTS, (4 * rows, 3))
    shared = shared_work()
    gradient = shared.value_and_grad(
        lambda weights, rows: other_reduction(1 + jnp.tanh(rows @ weights)),
        reduction=reduction,
    )
    value, slope, ok = jax.jit(gradient)(WEIGHTS, shared.place(inputs), 0)
    assert not ok
    assert np.isnan(value)
    assert np.isnan(slope).all()
    with pytest.raises(ValueError, match=r"of \d rows? is .* give .* with reduction"):
        shared.place(inputs)


def test_the_first_step_finds_a_loss_whose_rows_depend_on_each_other():
    def batch_norm(weights, rows):
        hidden = rows * weights
        return jnp.mean(((hidden - hidden.mean(0)) / hidden.std(0)) ** 3)

    largest = lambda weights, rows: jnp.max(jnp.tanh(rows @ weights))  # noqa: E731
    for loss in (batch_norm, largest):
        shared = shared_work()
        gradient = jax.jit(shared.value_and_grad(loss))
        assert not gradient(WEIGHTS, shared.place(INPUTS), 0)[2]
        assert "cannot be computed chunk by chunk" in str(shared.error)
        unchecked = shared_work()
        gradient = jax.jit(unchecked.value_and_grad(loss, check=False))
        assert gradient(WEIGHTS, unchecked.place(INPUTS), 0)[2]


def test_a_worker_whose_first_chunk_is_a_small_one_is_checked_in_the_next_step():
    shared = SharedWork(mesh_of_one("data"), chunks=2, max_subsets=1)
    handle = shared.shares[0]
    runs_of = handle.runs

    def smaller_first(step, loads=None):
        for run in runs_of(step, loads):
            begins = run[::-1] if step == 0 else run
            cut = [
                chunk._replace(end=(chunk.begin + chunk.end) / 2) for chunk in begins
            ]
            yield from ((chunk,) for chunk in (cut if step == 0 else begins))

    handle.runs = smaller_first  # type: ignore[method-assign]
    layout = layout_of(shared.shares, SAMPLES)
    sizes = layout._replace(sizes=(16, 8))
    check = LossCheck("mean", ("the loss",), 1e-3, is_random=False)
    program = Program(0, sizes, check)
    questions = Questions(shared.shares)
    kinds = []
    for step in range(2):
        for turn in range(12):
            numbers = np.array([step, turn, *[0] * 7], np.int32)
            kinds.append((step, int(questions.answer(program, numbers)[0])))
            if kinds[-1][1] <= 0:
                break
    assert (0, len(sizes.sizes) + 1) not in kinds
    assert (1, len(sizes.sizes) + 1) in kinds


def test_a_loss_with_a_key_is_wrong_only_if_it_is_off_by_two():
    """Its auxiliary values are not compared, because they may vary more."""
    check = LossCheck("mean", ("the loss", "the auxiliary value"), 1e-3, is_random=True)

    def compare(whole, first, second):
        values = np.array([[first, 1.0], [second, 1.0]])
        halves = np.stack([values, abs(values)], axis=1)
        check.compare(np.array([whole, 9.0]), halves, 8)

    compare(1.0, 1.3, 0.8)
    compare(0.1, -0.3, 0.4)
    compare(2.0, 1.5, 0.6)  # the halves differ too much to tell
    with pytest.raises(ValueError, match=r"is 2, but its halves give 1\.05 with"):
        compare(2.0, 1.1, 1.0)


WRONG_IN_A_MEAN = {
    "largest": lambda outputs: jnp.max(outputs),
    "perplexity": lambda outputs: jnp.exp(jnp.mean(4 * outputs)),
    "rows": lambda outputs: jnp.float32(len(outputs)),
    "spread": lambda outputs: {"of": [jnp.zeros(2), jnp.array([0.0, outputs.std()])]},
}


@pytest.mark.parametrize("name", WRONG_IN_A_MEAN)
def test_the_first_step_finds_an_auxiliary_value_that_is_no_mean(name):
    def loss(weights, rows):
        outputs = jnp.tanh(rows @ weights)
        return jnp.mean(outputs), {"right": outputs.mean(), name: value_of(outputs)}

    value_of = WRONG_IN_A_MEAN[name]
    shared = shared_work()
    gradient = jax.jit(shared.value_and_grad(loss, has_aux=True))
    (value, aux), _, ok = gradient(WEIGHTS, shared.place(INPUTS), 0)
    assert not ok
    assert np.isnan([value, *jax.tree.leaves(aux)[:1]]).all()
    with pytest.raises(ValueError, match=rf"`aux\['{name}'\].* but its halves give"):
        shared.place(INPUTS)


def test_numbers_of_rows_that_do_not_fit_are_refused():
    shared = SharedWork(mesh_of_one("data"), chunks=4)
    gradient = shared.value_and_grad(lambda w, stored: 0.0 * w)
    unequal = {"inputs": np.zeros((SAMPLES, 3)), "labels": np.zeros(SAMPLES // 2)}
    text = said(gradient, 1.0, unequal, 0)
    assert f"`stored['labels']` has {SAMPLES // 2} rows" in text
    assert "must be a multiple of 4, for example 36" in said(
        gradient, 1.0, np.zeros((SAMPLES + 1, 3)), 0
    )
    with pytest.raises(ValueError, match="`batch` is a scalar"):
        shared.place(1.0)
    with pytest.raises(ValueError, match="Use a multiple of 4 samples, for example 8"):
        shared.place(np.zeros(5))


def test_rows_of_a_step_are_those_of_its_chunks():
    assert sorted(shared_work().rows(SAMPLES)[0]) == list(range(SAMPLES))


def test_rows_are_listed_in_the_order_of_the_workers():
    """Whatever the order of the handles is: rows by hand are put in the same order."""
    memory = Memory()
    with serve(2, 1, 4, transport=memory) as coordinator:
        shares = {
            worker: join(coordinator.address, worker, transport=memory)
            for worker in (1, 0)
        }
        rows = SharedWork(mesh_of_one("data"), shares=shares).rows(SAMPLES)
    assert list(rows) == [0, 1]
    assert [*rows[0], *rows[1]] == list(range(SAMPLES))


@pytest.mark.smoke
def test_a_collective_over_workers_is_refused_with_its_line():
    gradient = shared_work().value_and_grad(lambda w, rows: jax.lax.psum(w, "data"))
    with pytest.raises(
        ValueError, match=r"psum.* over 'data' at .*test_shared_work\.py:\d+"
    ):
        jax.eval_shape(gradient, 1.0, INPUTS, 0)


def test_parameters_that_are_sharded_over_the_workers_are_refused():
    shared = shared_work()
    with pytest.raises(ValueError, match=r"`params\['up'\]` is sharded over 'data'"):
        shared.value_and_grad(mean_of, params={"up": P(None, "data"), "down": P()})
    mesh = mesh_of_one("data", kind=AxisType.Explicit)
    gradient = SharedWork(mesh, chunks=4).value_and_grad(mean_of)
    typed = jax.sharding.NamedSharding(mesh, P("data"))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="`params` is sharded over 'data'"),
    ):
        jax.eval_shape(gradient, jax.device_put(WEIGHTS, typed), INPUTS, 0)


def test_the_reduction_must_be_known():
    with pytest.raises(ValueError, match='must be "mean" or "sum", but is \'max\''):
        shared_work().value_and_grad(mean_of, reduction="max")


def test_after_the_coordinator_has_ended_reset_goes_on():
    shared = shared_work()
    gradient = jax.jit(shared.value_and_grad(mean_of))
    stored = shared.place(INPUTS)
    shared.coordinator.close()
    oks = []
    for step in range(2):
        oks.append(bool(gradient(WEIGHTS, stored, step)[2]))
    assert (oks, type(shared.error)) == ([False, False], ConnectionError)
    with pytest.raises(ConnectionError):
        shared.place(INPUTS)
    shared.reset()
    assert bool(gradient(WEIGHTS, stored, 2)[2])
    assert shared.error is None


def test_handles_with_other_chunks_than_the_program_are_refused():
    memories = [Memory(), Memory()]
    with (
        serve(1, 1, 4, transport=memories[0]) as first,
        serve(1, 1, 2, transport=memories[1]) as second,
    ):
        handles = [
            join(coordinator.address, 0, transport=memory)
            for coordinator, memory in zip((first, second), memories, strict=True)
        ]
        shared = SharedWork(mesh_of_one("data"), shares={0: handles[0]})
        gradient = jax.jit(shared.value_and_grad(mean_of))
        assert gradient(WEIGHTS, shared.place(INPUTS), 0)[2]
        with pytest.raises(ValueError, match="other workers, chunks or storage"):
            shared.reset({0: handles[1]})


def test_a_checksum_depends_on_each_bit_and_on_the_order():
    """In all types of arrays: a swap of two rows, and the last bit of one number."""
    rng = np.random.default_rng(0)
    for dtype in ("bool", "int8", "uint16", "int32", "float16", "bfloat16", "float32"):
        numbers = rng.integers(0, 2, (6, 5))
        numbers[:2] = [[1], [0]]
        changed = numbers.copy()
        changed[3, 2] = 1 - changed[3, 2]
        checksums = [
            tuple(np.asarray(checksum(jnp.asarray(rows, dtype))).tolist())
            for rows in (numbers, numbers[[1, 0, 2, 3, 4, 5]], changed, numbers)
        ]
        assert len(set(checksums)) == 3
        assert checksums[0] == checksums[3]
