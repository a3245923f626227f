r"""Cut the backward pass of a data subset into programs, one or two for each block.

A worker computes the backward pass of a subset only once, block after block. Let b be
the first block that needs an equation of the gradient's program. If a later block needs
the result as well, the equation belongs to program `carry` b, otherwise to `own` b. For
example, `carry` 0 contains the forward pass, and the other `carry` programs propagate
the cotangent. For block b, a worker runs the programs of `carry` 0 … b that have not
yet run for this subset, and then `own` b.

A gradient code amplifies differences between two workers' gradients of a subset, and
each program has its own rounding errors. So all workers compute a block of a subset by
the same programs, regardless of the blocks that they have computed before.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from bcgc_jax.coding.losses import Loss, PyTree, check_params, keys_of, traceable

# Primitives that call a program, whose equations are inlined. The derivatives have
# already been taken, so custom derivative rules no longer matter.
_CALLS = {
    *("jit", "pjit", "checkpoint", "remat2", "closed_call", "core_call"),
    *("custom_jvp_call", "custom_vjp_call"),
}


class Program(NamedTuple):
    """A compiled part of the gradient's program.

    Attributes:
      run: The compiled function.
      takes: Variables that `run` takes.
      gives: Variables that `run` returns.
      equations: Equations of the program.
    """

    run: jax.stages.Wrapped
    takes: tuple[core.Var, ...]
    gives: tuple[core.Var, ...]
    equations: tuple[Any, ...]


class Pass(NamedTuple):
    """A subset's backward pass: number of `carry` programs done, and known `values`."""

    done: int
    values: Mapping[core.Var, Array]


@dataclasses.dataclass(frozen=True)
class Stages:
    """Programs of the blocks, and the variables of their gradients.

    Attributes:
      programs: Programs by ("carry", b) and ("own", b). Empty programs are missing.
      results: Variables of the gradients of each block's leaves.
      inputs: Variables of the loss's arguments.
      constants: Values of constants in the loss, by variable.
    """

    programs: Mapping[tuple[str, int], Program]
    results: list[list[core.Var]]
    inputs: list[core.Var]
    constants: Mapping[core.Var, Array]

    def begin(self, params: PyTree, batch: PyTree, *key: Array) -> Pass:
        """Return a backward pass in which nothing is computed yet."""
        leaves = jax.tree.leaves((params, batch, *key))
        return Pass(
            0, {**self.constants, **dict(zip(self.inputs, leaves, strict=True))}
        )

    def due(self, done: int, block: int) -> list[Program]:
        """Return the programs to run for a block after `carry` 0 … `done` - 1."""
        places = [*(("carry", b) for b in range(done, block + 1)), ("own", block)]
        return [self.programs[place] for place in places if place in self.programs]

    def gradients(
        self, progress: Pass, block: int, later: Iterable[int] = ()
    ) -> tuple[list[Array], Pass]:
        """Compute the gradients of a block.

        Args:
          progress: Backward pass so far.
          block: Number of the block.
          later: Later blocks that this worker computes on the same samples. Values that
            they do not need are dropped.

        Returns:
          The gradients of the block's leaves, and the backward pass after the block.
        """
        values = dict(progress.values)
        for program in self.due(progress.done, block):
            outputs = program.run(*(values[v] for v in program.takes))
            values.update(zip(program.gives, outputs, strict=True))
        done = max(progress.done, block + 1)
        later_variables = set[core.Var]()
        for b in later:
            later_variables.update(
                self.results[b], *(program.takes for program in self.due(done, b))
            )
        kept = {v: value for v, value in values.items() if v in later_variables}
        return [values[v] for v in self.results[block]], Pass(done, kept)


def stages(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    blocks: Sequence[Sequence[int]],
    *key: Array,
) -> Stages:
    r"""Cut the gradient of a loss into programs, one or two for each block.

    Loops (`scan`, `while`) and branches are not cut. All blocks need equations with
    effects, such as printing, so a pass runs these equations exactly once.

    Args:
      loss: Function (params, batch), or (params, batch, key), that returns the loss.
      params: Parameters. Only shapes and dtypes are used, also of `batch` and `key`.
      batch: Samples, a pytree of arrays `[m, …]`.
      blocks: Numbers of the leaves of each block, in the order of computation. The
        number after the last leaf denotes the loss itself. If a leaf is in several
        blocks, the first one computes its gradient.
      *key: PRNG key, if the loss takes one.

    Returns:
      The `Stages`.

    Raises:
      ValueError: If JAX cannot trace the loss, or a leaf of `params` is not real.
    """
    check_params(params)
    with traceable():
        closed = jax.make_jaxpr(_grad_and_value(loss))(params, batch, *key)
    constants = dict[core.Var, Any]()
    equations = list[Any]()
    inputs = [core.Var(v.aval) for v in closed.jaxpr.invars]
    leaves = _flatten(closed, inputs, equations, constants)
    for leaf, v in enumerate(leaves):
        if isinstance(v, core.Literal):
            leaves[leaf] = core.Var(v.aval)
            constants[leaves[leaf]] = jnp.asarray(v.val, v.aval.dtype)  # type: ignore[attr-defined]
    results = [[leaves[leaf] for leaf in block] for block in blocks]
    placed = _placed(equations, results)
    outputs = {place: _outputs(eqns) for place, eqns in placed.items()}
    operands = {
        place: _operands(eqns, outputs[place]) for place, eqns in placed.items()
    }
    # Variables that blocks return, or that other programs take.
    asked = set[core.Var]().union(*results, *operands.values())
    programs = dict[tuple[str, int], Program]()
    for place, eqns in placed.items():
        takes = list(operands[place])
        gives = [v for v in outputs[place] if v in asked]
        body = closed.jaxpr.replace(
            constvars=[], invars=takes, outvars=gives, eqns=eqns
        )
        run = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(body, [])))
        programs[place] = Program(run, tuple(takes), tuple(gives), tuple(eqns))
    return Stages(
        programs=programs,
        results=results,
        inputs=inputs,
        constants={v: jnp.asarray(value) for v, value in constants.items()},
    )


def _grad_and_value(loss: Loss) -> Any:
    """Return a function that computes (gradient, loss), in this order."""
    value_and_grad = jax.value_and_grad(loss)
    return lambda *arguments: value_and_grad(*arguments)[::-1]


def _placed(
    equations: Sequence[Any], results: Sequence[Sequence[core.Var]]
) -> dict[tuple[str, int], list[Any]]:
    """Return the equations of each program, ("carry", b) or ("own", b), in order."""
    # Blocks that need a variable.
    asks = collections.defaultdict[core.Var, set[int]](set)
    for b, block in enumerate(results):
        for v in block:
            asks[v].add(b)
    backwards = collections.defaultdict[tuple[str, int], list[Any]](list)
    for equation in reversed(equations):
        everyone = range(len(results)) if equation.effects else ()
        asking = set(everyone).union(*(asks[v] for v in equation.outvars))
        for v in _variables(equation.invars):
            asks[v] |= asking
        if asking:
            kind = "own" if len(asking) == 1 else "carry"
            backwards[kind, min(asking)].append(equation)
    return {place: eqns[::-1] for place, eqns in backwards.items()}


def _outputs(equations: Sequence[Any]) -> dict[core.Var, None]:
    """Return the variables that equations define, in order."""
    return {v: None for equation in equations for v in equation.outvars}


def _operands(
    equations: Sequence[Any], outputs: Mapping[core.Var, None]
) -> dict[core.Var, None]:
    """Return the variables that equations use but do not define, in order."""
    operands = (v for equation in equations for v in _variables(equation.invars))
    return {v: None for v in operands if v not in outputs}


def backward_order(loss: Loss, params: PyTree, batch: PyTree) -> tuple[int, ...]:
    """Return the order in which backpropagation computes the leaves' gradients.

    Args:
      loss: Function (params, batch), or (params, batch, key), that returns the loss.
      params: Parameters. Only shapes and dtypes are used, also of `batch`.
      batch: Some samples, a pytree of arrays `[m, …]`.

    Returns:
      The numbers of the leaves of `params` in this order, for the argument `order` of
      `coding_plan`.

    Raises:
      ValueError: If a leaf of `params` is not a real array.

    >>> params = {"first": jnp.ones((3, 2)), "last": jnp.ones((2,))}
    >>> backward_order(
    ...     lambda p, x: jnp.sum(jnp.tanh(x @ p["first"]) @ p["last"]),
    ...     params,
    ...     jnp.ones((5, 3)),
    ... )
    (1, 0)
    """
    check_params(params)
    key = keys_of(loss, jax.random.key(0))(0, 0)
    closed = jax.make_jaxpr(jax.grad(loss))(params, batch, *key)
    equations = list[Any]()
    leaves = _flatten(closed, closed.jaxpr.invars, equations, {})
    equation_of = {
        id(v): i for i, equation in enumerate(equations) for v in equation.outvars
    }
    # Constant gradients come first. Leaves of the same equation come in reverse order,
    # as layers do in backpropagation.
    return tuple(
        sorted(
            range(len(leaves)), key=lambda k: (equation_of.get(id(leaves[k]), -1), -k)
        )
    )


def _variables(atoms: Iterable[Any]) -> list[core.Var]:
    return [v for v in atoms if not isinstance(v, core.Literal)]


def _flatten(
    closed: Any,
    arguments: Sequence[Any],
    equations: list[Any],
    constants: dict[core.Var, Any],
) -> list[Any]:
    """Append a program's equations with inlined calls, and return its results."""
    body = getattr(closed, "jaxpr", closed)
    names: dict[core.Var, Any] = dict(zip(body.invars, arguments, strict=True))
    for v, value in zip(body.constvars, getattr(closed, "consts", ()), strict=True):
        names[v] = core.Var(v.aval)
        constants[names[v]] = value

    def read(atoms: Iterable[Any]) -> list[Any]:
        return [v if isinstance(v, core.Literal) else names[v] for v in atoms]

    for equation in body.eqns:
        operands = read(equation.invars)
        params = equation.params
        if equation.primitive.name not in _CALLS:
            results = _append(equations, equation, operands)
        else:
            # A barrier keeps XLA from reusing values that `jax.checkpoint` must compute
            # again to save memory.
            recomputed = params.get("differentiated", False)
            fenced = params.get("prevent_cse", False)
            if recomputed and (any(fenced) if isinstance(fenced, tuple) else fenced):
                fence = jax.make_jaxpr(jax.lax.optimization_barrier)(
                    [v.aval for v in operands]
                )
                operands = _append(equations, fence.jaxpr.eqns[0], operands)
            if "jaxpr" in params:
                inner = params["jaxpr"]
            else:
                inner = params["call_jaxpr"]
            results = _flatten(inner, operands, equations, constants)
        names.update(zip(equation.outvars, results, strict=True))
    return read(body.outvars)


def _append(equations: list[Any], equation: Any, operands: list[Any]) -> list[core.Var]:
    """Append an equation with new variables, because a call may occur repeatedly."""
    outputs = [core.Var(v.aval) for v in equation.outvars]
    equations.append(equation.replace(invars=operands, outvars=outputs))
    return outputs
