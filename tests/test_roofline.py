"""What the study of accelerators counts, against programs whose operations and bytes are known by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments import roofline
from tests.studies import Ran


def test_a_program_is_counted_as_by_hand():
    x = jnp.ones(2**20, jnp.float32)
    row = roofline.counted("twice", lambda x, y: 2 * x + y, x, x)
    assert (row.operations, row.moved, row.transcendentals) == (2 * 2**20, 3 * 4 * 2**20, 0)
    assert row.seconds["H100"] == pytest.approx(3 * 2**22 / 3.35e12)
    row = roofline.counted("product", lambda x: x @ x, jnp.ones((512, 512), jnp.float32))
    assert row.operations == 2 * 512**3
    assert row.seconds["TPU v5e"] == pytest.approx(2 * 512**3 / 6.1e12)
    row = roofline.counted("roots", jnp.exp, x, repeated=3)
    assert row.transcendentals == 3 * 2**20


def test_a_loop_is_not_counted_as_one_round():
    with pytest.raises(ValueError, match="one round"):
        roofline.counted("loop", lambda x: jax.lax.fori_loop(0, 5, lambda i, y: jnp.sin(y), x), jnp.ones(9))


@pytest.mark.slow
def test_the_study_prints_its_programs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "PROBLEMS", 100)  # from which on no loop is left
    monkeypatch.setattr(roofline, "DRAWS", 64)
    found = Ran(roofline, tmp_path, capsys)
    assert "H100" in found.printed
    table = found.rows("roofline")
    assert len(table) == 3
    assert all(float(row["operations"]) > 0 and float(row["H100"]) > 0 for row in table)
