r"""The backward pass of a data subset, cut into programs at the ends of the blocks: it never begins again.

An equation of the gradient's program goes to the first block b that needs it: to `carry` b if a later block
needs it too (the cotangent on its way; first of all the forward pass), else to `own` b. A worker that needs a
block of a subset runs those of carry 0 … b that it has not yet run for this subset, then own b.

A gradient code magnifies whatever two workers' gradients of one subset differ by, and each program rounds in
its own way. So a subset's block comes from the same programs, whoever computes it and whatever came before.
"""

import collections
import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from bcgc_jax.coding.codes import refuse_complex
from bcgc_jax.coding.gradients import CodingPlan, Loss, PyTree

# Calls, whose equations are put in their place. All derivatives have been taken: a function with one of its
# own is a call like others.
_CALLS = {
    *("jit", "pjit", "checkpoint", "remat2", "closed_call", "core_call"),
    *("custom_jvp_call", "custom_vjp_call"),
}
_LOOPS = ("scan", "while")
# They put results elsewhere, and compute none.
_LAYOUT = {
    *("add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice"),
    *("expand_dims", "optimization_barrier", "pad", "reshape", "rev", "slice", "squeeze", "transpose"),
}


class Program(NamedTuple):
    """`equations`, compiled: what it `takes` and `gives` are variables of the whole gradient's program."""

    run: jax.stages.Wrapped
    takes: tuple[core.Var, ...]
    gives: tuple[core.Var, ...]
    equations: tuple[Any, ...]


class Pass(NamedTuple):
    """The backward pass of one subset, on its way: how many of `carry` are done, and the values `known`."""

    done: int
    known: Mapping[core.Var, Array]


@dataclasses.dataclass(frozen=True)
class Stages:
    """The programs of B blocks, None where there is nothing to do, and where their gradients are found.

    Attributes:
      carry, own: as above, `[B]`.
      results: for each block the variable of each of its leaves' gradients (or a constant).
      together: blocks whose gradients come out of one loop.
      inputs, constants: variables of parameters and samples, and values that the loss has of its own.
      memory: found once: what a pass needs from one block to the next.
    """

    carry: tuple[Program | None, ...]
    own: tuple[Program | None, ...]
    results: tuple[tuple[Any, ...], ...]
    together: tuple[tuple[int, ...], ...]
    inputs: tuple[core.Var, ...]
    constants: Mapping[core.Var, Array]
    memory: dict[Any, tuple[core.Var, ...]] = dataclasses.field(default_factory=dict)

    def begin(self, params: PyTree, batch: PyTree) -> Pass:
        """Before anything is computed."""
        leaves = jax.tree.leaves((params, batch))
        return Pass(0, {**self.constants, **dict(zip(self.inputs, leaves, strict=True))})

    def due(self, done: int, block: int) -> list[Program]:
        """What is to be run for a block once `carry` 0 … `done` - 1 have been."""
        programs = [*self.carry[done : block + 1], self.own[block]]
        return [program for program in programs if program is not None]

    def gradients(self, at: Pass, block: int, later: Iterable[int] = ()) -> tuple[list[Array], Pass]:
        """The leaves of a block, and the pass from then on: no more is kept than blocks `later` need."""
        known = dict(at.known)
        for program in self.due(at.done, block):
            known.update(zip(program.gives, program.run(*(known[v] for v in program.takes)), strict=True))
        found = [
            jnp.asarray(v.val, v.aval.dtype)  # type: ignore[attr-defined]
            if isinstance(v, core.Literal)
            else known[v]
            for v in self.results[block]
        ]
        done, key = max(at.done, block + 1), (at.done, block, *later)
        if key not in self.memory:
            needed = {v for b in key[2:] for program in self.due(done, b) for v in program.takes}
            needed.update(v for b in key[2:] for v in _variables(self.results[b]))
            self.memory[key] = tuple(v for v in known if v in needed)
        return found, Pass(done, {v: known[v] for v in self.memory[key]})


def stages(loss: Loss, params: PyTree, batch: PyTree, blocks: Sequence[Sequence[int]]) -> Stages:
    r"""Cut the gradient of `loss` with respect to `params` into blocks in the order of their computation.

    Of `params` and `batch` only shapes and dtypes count; `blocks` are the leaves of each, as numbers. A leaf
    that is cut across several blocks belongs to the first, and is kept for the others.

    Loops (`scan`, `while`) and branches are not cut. Equations with effects, such as printing, and what they
    need, count to all blocks: they happen once.

    >>> params, batch = [jnp.full((2, 2), 0.5), jnp.ones(2)], jnp.arange(6.0).reshape(3, 2)
    >>> loss = lambda p, x: jnp.mean(jnp.tanh(x @ p[0]) @ p[1])
    >>> cut = stages(loss, params, batch, [[1], [0]])  # the last layer first
    >>> (last,), rest = cut.gradients(cut.begin(params, batch), 0, later=[1])
    >>> (first,), _ = cut.gradients(rest, 1)
    >>> [bool(jnp.allclose(g, w)) for g, w in zip([first, last], jax.grad(loss)(params, batch))]
    [True, True]
    """
    refuse_complex("params", params)
    closed = jax.make_jaxpr(jax.grad(loss))(params, batch)
    constants, equations = dict[core.Var, Any](), list[Any]()
    inputs = [core.Var(v.aval) for v in closed.jaxpr.invars]
    leaves = _flatten(closed, inputs, equations, constants)
    results = [[leaves[leaf] for leaf in block] for block in blocks]
    needed = [_needed(equations, block) for block in results]
    # What each program runs, by its kind and its block, and which programs take a variable.
    mine: dict[tuple[str, int], list[Any]] = {}
    takers = {v: {("results", b)} for b, block in enumerate(results) for v in _variables(block)}
    for i, equation in enumerate(equations):
        asking = [b for b, own in enumerate(needed) if i in own]
        if asking:
            place = "own" if len(asking) == 1 else "carry", asking[0]
            mine.setdefault(place, []).append(equation)
            for v in _variables(equation.invars):
                takers.setdefault(v, set()).add(place)

    def program(kind: str, block: int) -> Program | None:
        """That gives what other programs take, or the results."""
        own = mine.get((kind, block))
        if own is None:
            return None
        made = dict.fromkeys(v for equation in own for v in equation.outvars)
        taken = dict.fromkeys(v for equation in own for v in _variables(equation.invars) if v not in made)
        given = [v for v in made if takers.get(v, set()) - {(kind, block)}]
        part = closed.jaxpr.replace(constvars=[], invars=list(taken), outvars=given, eqns=own)
        run = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(part, [])))
        return Program(run, tuple(taken), tuple(given), tuple(own))

    carry, own = ([program(kind, b) for b in range(len(blocks))] for kind in ("carry", "own"))
    return Stages(
        carry=tuple(carry),
        own=tuple(own),
        results=tuple(map(tuple, results)),
        together=_together(equations, results),
        inputs=tuple(inputs),
        constants={v: jnp.asarray(value) for v, value in constants.items()},
    )


def leaves_of_blocks(plan: CodingPlan, share: tuple[float, float]) -> list[list[int]]:
    """The leaves of all blocks, piece for piece; of blocks that are not of this share of the samples none."""
    return [[p.leaf for p in block.pieces] if block.share == share else [] for block in plan.blocks]


def tell_of_loops(loss: Loss, plan: CodingPlan, params: PyTree, batch: PyTree) -> None:
    """Warn of blocks that come at once although the plan counts on one after another."""
    shares = collections.Counter(block.share for block in plan.blocks)
    for share in (share for share, many in shares.items() if many > 1):
        for blocks in stages(loss, params, batch, leaves_of_blocks(plan, share)).together:
            warnings.warn(
                f"blocks {', '.join(map(str, blocks))} of the gradient come out of one loop of the loss "
                "(lax.scan or while_loop), all at once: a worker has none of them before it has computed "
                "all, so they are worth no more than one block. If the loop is over layers, write it out: a "
                "list with the parameters of each layer, and a Python loop over it",
                stacklevel=4,  # of `assign` and `prepare` of a cluster
            )


def _variables(atoms: Iterable[Any]) -> list[core.Var]:
    return [v for v in atoms if not isinstance(v, core.Literal)]


def _flatten(
    closed: Any, given: Sequence[Any], equations: list[Any], constants: dict[core.Var, Any]
) -> list[Any]:
    """Append a program's equations to `equations`, those of calls in their place; where its results are."""
    body = getattr(closed, "jaxpr", closed)
    names: dict[core.Var, Any] = dict(zip(body.invars, given, strict=True))
    for v, value in zip(body.constvars, getattr(closed, "consts", ()), strict=True):
        names[v] = core.Var(v.aval)
        constants[names[v]] = value

    def read(atoms: Iterable[Any]) -> list[Any]:
        return [v if isinstance(v, core.Literal) else names[v] for v in atoms]

    for equation in body.eqns:
        taken, params = read(equation.invars), equation.params
        if equation.primitive.name not in _CALLS:
            found = _append(equations, equation, taken)
        else:
            # What is to be computed again, to save memory, must not be found to be known.
            again, kept = (params.get(k, False) for k in ("differentiated", "prevent_cse"))
            if again and (any(kept) if isinstance(kept, tuple) else kept):
                fence = jax.make_jaxpr(jax.lax.optimization_barrier)([v.aval for v in taken])
                taken = _append(equations, fence.jaxpr.eqns[0], taken)
            inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
            found = _flatten(inner, taken, equations, constants)
        names.update(zip(equation.outvars, found, strict=True))
    return read(body.outvars)


def _append(equations: list[Any], equation: Any, taken: list[Any]) -> list[core.Var]:
    """With variables of its own: a call's program may be called several times."""
    equations.append(equation.replace(invars=taken, outvars=[core.Var(v.aval) for v in equation.outvars]))
    return equations[-1].outvars


def _needed(equations: Sequence[Any], results: Sequence[Any]) -> set[int]:
    """The equations that `results` need, and those with effects, by number."""
    wanted, needed = set(_variables(results)), set()
    for i in reversed(range(len(equations))):
        if equations[i].effects or not wanted.isdisjoint(equations[i].outvars):
            needed.add(i)
            wanted.update(_variables(equations[i].invars))
    return needed


def _together(equations: Sequence[Any], results: Sequence[Sequence[Any]]) -> tuple[tuple[int, ...], ...]:
    """For each loop whose results are gradients of several blocks, these blocks."""
    makes = {v: i for i, equation in enumerate(equations) for v in equation.outvars}
    of: dict[int, set[int]] = {}
    for b, block in enumerate(results):
        stack, seen = _variables(block), set()  # type: ignore[var-annotated]
        while stack:
            i = makes.get(stack.pop())
            if i is None or i in seen:
                continue
            seen.add(i)
            if equations[i].primitive.name in _LOOPS:
                of.setdefault(i, set()).add(b)
            elif equations[i].primitive.name in _LAYOUT:
                stack += _variables(equations[i].invars)
    return tuple(dict.fromkeys(tuple(sorted(blocks)) for blocks in of.values() if len(blocks) > 1))
