"""`Cyclic`: workers compute adjacent subsets in turn, and every finished one counts.

The expected runtime is exact for i.i.d. workers (`plans.completion.FirstHolder`).
Otherwise it is a Monte Carlo estimate.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import concrete, pytree_dataclass, replace, static_field
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.circle import sent_on_circle
from bcgc_jax.plans.draws import over_draws
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import load_of_plan
from bcgc_jax.plans.plan import Plan, Requirements, cyclic_plan
from bcgc_jax.plans.runtime import draw_runtimes, integrate_runtime
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.method import NUM_DRAWS, Numbered


@pytree_dataclass
class Cyclic(Numbered):
    """Let each worker compute its stored subsets one by one, in cyclic order.

    Amiri & Gündüz, Computation scheduling for distributed machine learning with
    straggling workers, 2019.

    Args:
      stored: Number of data subsets that each worker stores. Must be static.
    """

    stored: int = static_field()

    word = "cyclic"
    what = "a number of stored subsets"
    counts = (("stored", 1),)
    refuses = ("send_time",)  # what each worker sends depends on the random times
    baseline = True
    is_partition = False

    def is_drawn(self, problem: Problem) -> bool:
        return not iteration_of(problem).alike

    def needs_mean(self, problem: Problem) -> bool:
        return self.is_drawn(problem)

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        workers = concrete(problem.num_workers)
        drawn = self.is_drawn(problem)
        # Samples of padded workers would take as long as samples of real ones.
        if workers is not None and not workers.ndim and drawn:
            problem = replace(problem, max_workers=int(workers))
        plan = cyclic_plan(problem.total, self.stored)
        if not drawn:
            key = None
        runtime, needs = _evaluate(problem, plan, key)
        solution = solution_of_value(problem, runtime, drawn=drawn)
        return replace(solution, plan=replace(plan, known_needs=needs))


@jax.jit
def _evaluate(
    problem: Problem, plan: Plan, key: Array | None
) -> tuple[Expectation, Requirements]:
    """Return the expected runtime and the requirements of a plan.

    With a key, the runtime is a Monte Carlo estimate. It is NaN for too few workers.
    """
    if key is None:
        runtime = integrate_runtime(problem, plan)
    else:
        runtime = _by_draws(problem, plan, key)
    work = load_of_plan(problem, plan).work
    workers = jnp.asarray(problem.num_workers)

    def sent(starts: Array, times: Array) -> Array:
        return sent_on_circle(work, times, starts, workers)

    # The number of messages is reported with two digits, so few samples are enough, and
    # the key is fixed. With many workers, a sample averages over many messages.
    draws = min(2**12, max(2**22 // problem.max_workers, 32))
    messages = over_draws(jax.random.key(0), problem, sent, draws, 2)
    needs = Requirements(
        stored_subsets=jnp.asarray(work.size, int),
        # This is a mean of integers, which have no derivative.
        sent=without_derivative(jnp.mean(messages), problem),
        round_trips=jnp.ones((), int),
        exact_gradient=jnp.ones((), bool),
        lost=jnp.zeros((), messages.dtype),
    )
    exists = workers >= work.size
    return Expectation(
        *(jnp.where(exists, number, jnp.nan) for number in runtime)
    ), needs


def _by_draws(problem: Problem, plan: Plan, key: Array) -> Expectation:
    tau = draw_runtimes(key, problem, plan, NUM_DRAWS)
    return Expectation(jnp.mean(tau), jnp.std(tau) / NUM_DRAWS**0.5)
