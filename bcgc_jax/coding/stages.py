r"""The backward pass of a data subset, cut into programs at the ends of the blocks.

It never begins again. An equation of the gradient's program goes to the first block b
that needs it: to `carry` b if a later block needs it too (the cotangent on its way;
first of all the forward pass), else to `own` b. A worker that needs a block of a subset
runs those of carry 0 … b that it has not yet run for this subset, then own b.

A gradient code magnifies whatever two workers' gradients of one subset differ by, and
each program rounds in its own way. So a subset's block comes from the same programs,
whoever computes it and whatever came before.
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

# Calls, whose equations are put in their place. All derivatives have been taken: a
# function with one of its own is a call like others.
_CALLS = {
    *("jit", "pjit", "checkpoint", "remat2", "closed_call", "core_call"),
    *("custom_jvp_call", "custom_vjp_call"),
}


class Program(NamedTuple):
    """Compiled `equations`; it `takes` and `gives` variables of the whole gradient."""

    run: jax.stages.Wrapped
    takes: tuple[core.Var, ...]
    gives: tuple[core.Var, ...]
    equations: tuple[Any, ...]


class Pass(NamedTuple):
    """A subset's backward pass: how many of `carry` are done, and `values` so far."""

    done: int
    values: Mapping[core.Var, Array]


@dataclasses.dataclass(frozen=True)
class Stages:
    """The programs of the blocks, and where their gradients are found.

    Attributes:
      programs: as above, ("carry", b) and ("own", b); none where there is nothing to
        do.
      results: for each block the variable of each of its leaves' gradients.
      inputs, constants: variables of what the loss is given, and values that it has of
        its own.
    """

    programs: Mapping[tuple[str, int], Program]
    results: list[list[core.Var]]
    inputs: list[core.Var]
    constants: Mapping[core.Var, Array]

    def begin(self, params: PyTree, batch: PyTree, *key: Array) -> Pass:
        """The pass before anything is computed."""
        leaves = jax.tree.leaves((params, batch, *key))
        return Pass(
            0, {**self.constants, **dict(zip(self.inputs, leaves, strict=True))}
        )

    def due(self, done: int, block: int) -> list[Program]:
        """The programs to run for a block once `carry` 0 … `done` - 1 have run."""
        places = [*(("carry", b) for b in range(done, block + 1)), ("own", block)]
        return [self.programs[place] for place in places if place in self.programs]

    def gradients(
        self, progress: Pass, block: int, later: Iterable[int] = ()
    ) -> tuple[list[Array], Pass]:
        """A block's leaves, and the pass after it, with what blocks `later` need."""
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
    r"""Cut the gradient of `loss` in `params` into blocks in the order of their
    computation.

    Of what the loss is given only shapes and dtypes count; `blocks` are the leaves of
    each, as numbers. The number after those of the leaves is the loss itself. A leaf
    that is cut across several blocks belongs to the first, and is kept for the others.

    Loops (`scan`, `while`) and branches are not cut. Equations with effects, such as
    printing, and what they need, count to all blocks: they happen once.
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
    # As results, or by other programs.
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
    """The gradient of a loss, and behind its leaves the loss."""
    value_and_grad = jax.value_and_grad(loss)
    return lambda *arguments: value_and_grad(*arguments)[::-1]


def _placed(
    equations: Sequence[Any], results: Sequence[Sequence[core.Var]]
) -> dict[tuple[str, int], list[Any]]:
    """The equations of each program, ("carry", b) or ("own", b), in their order."""
    # The blocks that need a variable.
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
    """The variables that equations make, in their order."""
    return {v: None for equation in equations for v in equation.outvars}


def _operands(
    equations: Sequence[Any], outputs: Mapping[core.Var, None]
) -> dict[core.Var, None]:
    """The variables that equations take from elsewhere, in their order."""
    operands = (v for equation in equations for v in _variables(equation.invars))
    return {v: None for v in operands if v not in outputs}


def backward_order(loss: Loss, params: PyTree, batch: PyTree) -> tuple[int, ...]:
    """The numbers of the leaves of `params` in the order in which reverse mode yields
    gradients.

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
    # What comes at the same time comes from the end, as the layers do; constants come
    # first.
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
    """Append a program's equations, calls inlined; return where its results are."""
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
            # What is to be computed again, to save memory, must not be found to be
            # known.
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
    """Append it with new variables: a program may be called several times."""
    outputs = [core.Var(v.aval) for v in equation.outvars]
    equations.append(equation.replace(invars=operands, outvars=outputs))
    return outputs
