"""Gradient codes against NumPy's least squares and sums, over sets of stragglers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding import codes
from bcgc_jax.coding.codes import decode, decoding_weights, encode, gradient_code
from tests.compilations import compilations
from tests.problems import slow

KEY = jax.random.key(5)

# Programs are shared: up to N = 7 a code stands beside an uncoded rest, masks are
# repeated to a batch.
SIZE, BATCH = 7, {7: 64, 20: 1020}
at_once = jax.jit(jax.vmap(decoding_weights, (None, 0)))
one_by_one = jax.jit(
    lambda b, masks: jax.lax.map(lambda m: decoding_weights(b, m), masks)
)
decode_all = jax.jit(jax.vmap(decode, (0, None)))
message = jax.jit(codes.message, static_argnums=2)


def to_batch(rows: np.ndarray, fill: float) -> np.ndarray:
    """Rows, a number a worker, padded with `fill`, as a batch of one of few shapes."""
    n, count = rows.shape[1], len(rows)
    size = SIZE if 1 < n < SIZE else n
    wide = np.pad(rows, ((0, 0), (0, size - n)), constant_values=fill)
    return np.resize(wide, (BATCH.get(size, count), size))


def weights_of(encoding, masks: np.ndarray) -> Any:
    n = len(encoding)
    count = len(masks)
    batch = to_batch(masks, True)
    padded: Any = np.eye(batch.shape[1])
    padded[:n, :n] = encoding
    with jax.enable_x64(True):
        padded = jnp.asarray(padded)
    # A batch of large systems leaves the cache.
    weights_and_decodable = (at_once if n < 20 else one_by_one)(padded, batch)
    weights, decodable = (np.asarray(x)[:count] for x in weights_and_decodable)
    return codes.Decoding(weights[:, :n], decodable)  # type: ignore[arg-type]


def decoded_sums(weights: np.ndarray, messages) -> np.ndarray:
    """`decode` of each row of weights, `[K, …]`, in the programs of the weights."""
    padded: Any = to_batch(weights, 0)
    with jax.enable_x64(True):
        padding = [jnp.asarray(np.zeros_like(messages[0]))] * (
            padded.shape[1] - len(messages)
        )
        padded = jnp.asarray(padded)
    return np.asarray(decode_all(padded, [*messages, *padding]), float)[: len(weights)]


def every_code(sizes):
    for n in sizes:
        for level in range(n):
            for construction in codes.CONSTRUCTIONS:
                try:
                    yield gradient_code(KEY, n, level, construction)
                except ValueError:
                    continue


def all_masks(num_workers: int, level: int) -> np.ndarray:
    late = itertools.combinations(range(num_workers), level)
    return np.array(
        [[w not in stragglers for w in range(num_workers)] for stragglers in late]
    )


def some_masks(
    num_workers: int, level: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` random sets of stragglers and all contiguous ones."""
    rank = np.argsort(rng.random((count, num_workers)), axis=1)
    start = (np.arange(num_workers) - np.arange(num_workers)[:, None]) % num_workers
    return np.concatenate([rank, start]) >= level


def worst_error(decoded: np.ndarray, gradients: np.ndarray) -> float:
    exact = gradients.astype(float).sum(axis=0)
    return float(
        (np.linalg.norm(decoded - exact, axis=1) / np.linalg.norm(exact)).max()
    )


def relative_error(
    code: codes.GradientCode, masks: np.ndarray, rng: np.random.Generator
) -> float:
    """Of the decoded sum of float32 gradients against NumPy's float64 sum."""
    gradients = rng.standard_normal((len(code.subsets), 64)).astype(np.float32)
    decoding = weights_of(code.encoding, masks)
    assert np.all(decoding.decodable)
    # Weights are those of workers that arrived.
    assert np.all(decoding.weights[~masks] == 0)
    return worst_error(
        decoded_sums(decoding.weights, encode(code, gradients)), gradients
    )


@pytest.mark.smoke
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_every_construction_decodes_every_set_of_stragglers(n):
    rng, seen = np.random.default_rng(2), set()
    for code in every_code([n]):
        seen.add(code.construction)
        masks = all_masks(n, code.level)
        # the rounding to float32; worst measured 6e-8
        assert relative_error(code, masks, rng) < 2e-7
        # Each worker computes level + 1 subsets, and each subset is computed level + 1
        # times.
        support = np.asarray(code.encoding) != 0
        assert np.all(np.abs(code.encoding).max(axis=1) == 1)
        assert np.all(support.sum(axis=0) == code.level + 1)
        assert np.all(support.sum(axis=1) == code.level + 1)
    assert {"uncoded", "replication", "random_cyclic"} <= seen


AT = {20: (0, 1, 2, 5, 8, 10, 13, 16, 18, 19), 100: (25, 50)}


@pytest.mark.parametrize("n", [20, *slow(100)])
def test_the_chosen_code_is_exact_to_float32_at_many_workers(n):
    rng = np.random.default_rng(n)
    for level in AT[n]:
        code = gradient_code(KEY, n, level)
        masks = some_masks(n, level, 1000 if n < 100 else 300, rng)
        # Asked for: 1e-6. Worst measured 5e-8, by hand over 1000 sets at every level of
        # N = 100.
        assert relative_error(code, masks, rng) < 2e-7


def test_any_workers_decode_that_least_squares_says_can():
    for code in every_code([5, 6]):
        encoding = np.asarray(code.encoding)
        masks = np.array(list(itertools.product([False, True], repeat=len(encoding))))
        decoding = weights_of(code.encoding, masks)
        for mask, decodable, weights in zip(
            masks, decoding.decodable, decoding.weights, strict=True
        ):
            rows = encoding[mask]
            best = np.linalg.lstsq(rows.T, np.ones(len(encoding)), rcond=None)[0]
            left = np.abs(rows.T @ best - 1).max() if mask.any() else 1.0
            assert decodable == (left < 1e-6)
            if decodable:
                np.testing.assert_allclose(weights @ encoding, 1, atol=1e-9)
                assert np.all(weights[~mask] == 0)
            else:
                assert np.all(np.isnan(weights))
        # The sum of too few is NaN, not wrong.
        assert np.all(
            np.isnan(
                decode(decoding.weights[0], encode(code, jnp.ones((len(encoding), 3))))
            )
        )


@pytest.mark.parametrize(
    ("encoding", "decodable"),
    [
        # Only a multiple of (1, 1 + miss) can be had of both.
        ([[1, 1 + 4e-7], [1, 1 + 4e-7]], True),
        ([[1, 1 + 7e-7], [1, 1 + 7e-7]], False),
        # Weights 1 - 1/e and 1/e amplify by 2/e - 1.
        ([[1, 0], [1, 2 / 7e8]], True),
        ([[1, 0], [1, 2 / 1.5e9]], False),
    ],
)
def test_sums_are_decoded_to_a_few_in_ten_millions_or_not_at_all(encoding, decodable):
    decoding = weights_of(np.array(encoding), np.ones((1, 2), bool))
    assert decoding.decodable.tolist() == [decodable]


def test_the_chooser_takes_the_best_that_the_held_subsets_permit():
    chosen = [
        gradient_code(KEY, 12, s, top_level=11).construction
        for s in (0, 1, 2, 3, 5, 11)
    ]
    assert chosen == ["uncoded", *["fractional_repetition"] * 4, "replication"]
    # Under a plan that ends at level 5 the workers hold 6 subsets: enough for groups of
    # 3, not of 4 or 6.
    assert (
        gradient_code(KEY, 12, 2, top_level=5).construction == "fractional_repetition"
    )
    without_groups = {
        gradient_code(KEY, 12, level, top_level=5).construction for level in (3, 5)
    }
    assert without_groups <= {"cyclic_mds", "random_cyclic"}
    for top in range(12):
        held = [set(row) for row in bcgc.coding.allocate(12, top).tolist()]
        for level in range(top + 1):
            code = gradient_code(KEY, 12, level, top_level=top)
            for subsets, stored in zip(code.subsets, held, strict=True):
                assert set(subsets) <= stored
    # Among the others the better conditioned one.
    candidates = [gradient_code(KEY, 20, 3, c) for c in ("cyclic_mds", "random_cyclic")]
    worst = [codes.conditioning(KEY, code, 200) for code in candidates]
    assert (
        gradient_code(KEY, 20, 3).construction
        == candidates[int(np.argmin(worst))].construction
    )


def test_conditioning_is_the_worst_over_the_sets_by_brute_force(x64):
    for construction in ("cyclic_mds", "random_cyclic"):
        code = gradient_code(KEY, 6, 3, construction)
        encoding, worst = np.asarray(code.encoding), 0.0
        for mask in all_masks(6, 3):
            weights = np.linalg.lstsq(encoding[mask].T, np.ones(6), rcond=None)[0]
            worst = max(worst, float((np.abs(weights) @ np.abs(encoding[mask])).max()))
        assert codes.conditioning(KEY, code) == pytest.approx(worst, rel=1e-9)


def test_float32_messages_are_kept_for_codes_that_bear_them():
    narrow = gradient_code(KEY, 5, 2, "cyclic_mds")
    wide = gradient_code(KEY, 20, 9, "cyclic_mds")
    # Messages of the first are amplified by 3, of the last by 5.
    five = gradient_code(KEY, 6, 3, "cyclic_mds")
    assert (narrow.wide, wide.wide, five.wide) == (False, True, True)
    dtypes = [
        encode(code, jnp.ones((len(code.subsets), 2)))[0].dtype
        for code in (narrow, wide)
    ]
    assert dtypes == [np.float32, np.float64]
    # Without float64 messages the wide code would lose three digits.
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((20, 50)).astype(np.float32)
    decoding = weights_of(wide.encoding, some_masks(20, 9, 200, rng))
    rounded = [np.asarray(m, np.float32) for m in encode(wide, gradients)]
    # Measured 6e-5.
    assert worst_error(decoded_sums(decoding.weights, rounded), gradients) > 1e-5


def test_second_calls_compile_nothing():
    def calls(seed):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        code = gradient_code(key, 6, 2, "random_cyclic")
        gradient_code(key, 6, 3)
        codes.conditioning(key, code, 20)
        bcgc.coding.allocate(6, 2)
        decoding = decoding_weights(code.encoding, rng.permutation(6) > 1)
        for size in (3, 5000):
            messages = encode(code, rng.standard_normal((6, size)).astype(np.float32))
            rows: Any = np.stack(messages)
            decode(decoding.weights, messages)
            decode(decoding.weights, rows)
            message(codes.row_of(code, 0), messages[:3], code.wide)

    calls(0)
    with compilations() as compiled:
        calls(1)
    assert compiled == []


def test_what_does_not_exist_is_refused_in_words():
    refused: dict[str, Any] = {
        "level must be from 0 to 3": (4, 4),
        'no "fractional_repetition" code for 5 workers at level 1': (
            5,
            1,
            "fractional_repetition",
        ),
        'no "cyclic_mds" code': (6, 2, "cyclic_mds"),
        'no "magic" code .* possible: fractional_repetition, random_cyclic': (
            6,
            2,
            "magic",
        ),
    }
    for words, arguments in refused.items():
        with pytest.raises(ValueError, match=words):
            gradient_code(KEY, *arguments)
