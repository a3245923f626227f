r"""The closed loop: what was measured decides which plan the next iteration has.

Every rule of `rules` has a plan, made from the iterations before, and after each iteration it is known what
each of these plans would have taken in it: a worker's time is its start-up and its load's. So rules are
compared by what they would have done, each by plans that had not seen the iteration (but for plans that are
hardly fitted to it, or know much more than the one that is run), and nothing need be tried out. A change has
to pay: by more than half the comparison's own error, and than what the change costs. Workers that prepare
another plan beside their work are slower than they are: such iterations count as a cost and say no more.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from bcgc_jax.adaptive.plans import WorkPlan
from bcgc_jax.adaptive.rules import MOST_STORED, RULES, Rule, Window

# Iterations before a plan is made; those that plans are made from and compared by, at most.
FIRST, WINDOW = 4, 40
# Made before anything is known, and so of even shares; the training begins with the last one.
CAUTIOUS = ("uncoded", "alternating")
# Of shares by speed; speeds change soon.
_LAST = 10
# A gain is believed that is so many of its standard errors, and this share of the time.
_ERRORS, _LEAST = 0.5, 0.005
# Iterations that a gain is expected to last, at most; and as many as the last few plans lasted, times two.
_HORIZON, _LAST_PLANS = 100, 3
# Changes may cost so much of all the training's time without redundancy, and of what has been saved; more
# where one is to save so many times what it costs.
_STAKE, _REINVESTED, _CLEARLY = 0.015, 0.5, 2.0
# Plans are made anew so often where that is cheap; where it is a search, at these iterations of a window, and
# then so often.
_EVERY, _SEARCHED_AT, _SEARCHED_EVERY = 5, (FIRST, 2 * FIRST, 4 * FIRST, 6 * FIRST, 8 * FIRST), 20
_SEARCHED = ("multi_message", "nested")
# A plan from so many times as many iterations is judged by those too: it is likely to be the better one.
_MORE = 1.5
# Where a worker was stopped before its first task was done in so many iterations, one goes uncoded.
_UNSEEN = 10


class Decision(NamedTuple):
    """Why a plan was changed.

    Attributes:
      step: the first iteration with the new plan.
      before, after: names of rules; the same where a plan was made anew from the last iterations.
      mean_time: of the iterations since the last decision, as measured.
      expected: of the new plan, from the iterations that it is judged by.
      gain: what the change is expected to save an iteration.
    """

    step: int
    before: str
    after: str
    mean_time: float
    expected: float
    gain: float


class Planner:
    """Observes iterations, and has the `plan` of the next one; `decisions` says why.

    Args:
      num_workers, num_steps: N, and how many iterations there will be.
      max_stored: subsets of the data that a worker may hold; 20 by default, and never more than N.
      change_seconds, move_seconds: what a change of the plan takes, and what it takes to send all data once.
      message_seconds: what the master takes for a worker's message, until it is measured: one for each task.
      rules: how plans are made, by name; "uncoded" among them.
      key: of the rules that search.

    >>> planner = Planner(4, 30, key=jax.random.key(0))
    >>> for times in np.random.default_rng(0).exponential(1.0, (20, 4)):
    ...     planner.observe(times, np.ones(4, bool), float(planner.plan.runtimes(times[None])[0]))
    >>> planner.decisions[0].before
    'alternating'
    """

    def __init__(
        self,
        num_workers: int,
        num_steps: int,
        *,
        key: jax.Array,
        max_stored: int = MOST_STORED,
        change_seconds: float = 0.0,
        move_seconds: float = 0.0,
        message_seconds: float = 0.0,
        rules: Mapping[str, Rule] = RULES,
    ) -> None:
        self._rules, self._key = dict(rules), key
        self._max_stored = min(max_stored, num_workers)
        self.change_seconds, self.move_seconds = change_seconds, move_seconds
        self.message_seconds = message_seconds
        self.num_steps, self.step = num_steps, 0
        self._times = self._starts = np.zeros((0, num_workers))
        self._unseen = np.zeros(num_workers, int)
        nothing = Window(np.ones((1, num_workers)), self._max_stored, key)
        self._plans = {name: rules[name](nothing) for name in CAUTIOUS if name in rules}
        # Its own subset first: no worker is later with it than without redundancy.
        self.plan = self._plans[CAUTIOUS[self._max_stored > 1 and CAUTIOUS[-1] in rules]]
        # What each rule's plan would have taken in each iteration of the window, NaN before it had one; and
        # the plan that is run.
        self._losses: dict[str, list[float]] = {name: [] for name in rules}
        self._own: list[float] = []
        # From how many iterations a rule's newest plan was made, and how many came since; of the one that is
        # run the first.
        self._made_from, self._unfitted = dict.fromkeys(rules, 0), dict.fromkeys(rules, 0)
        self._own_made_from = 0
        # What iterations took beyond what their times say, by rule: means, and of how many.
        self._extra: dict[str, tuple[float, int]] = {}
        self._since: list[float] = []  # what iterations took since the last decision
        self._disturbance = 0.0
        self._probing: WorkPlan | None = None
        # Seconds saved against no redundancy, and spent on changes.
        self._saved = self._spent = 0.0
        self.decisions: list[Decision] = []

    def observe(
        self,
        times: np.ndarray,
        known: np.ndarray,
        taken: float,
        ran: WorkPlan | None = None,
        start_ups: np.ndarray | float = 0.0,
        preparing: bool = False,
    ) -> None:
        """After an iteration, with `plan` or with the one that `ran`; the plan may be another one then.

        `times`, `[N]`: what each worker takes for 1/N of all work, `start_ups` what passes before, whatever
        it does. Where not `known` it was stopped before it had done a task, and `times` is what it takes at
        least if it had no start-up. `taken`: what the iteration took, `preparing` of another plan beside it
        included.
        """
        ran = self.plan if ran is None else ran
        if preparing and self._extra:
            self._disturbance += taken - float(np.mean(self._runtimes(ran))) - self._more(ran.name)
            uncoded = self._uncoded()
        else:
            starts = np.broadcast_to(np.asarray(start_ups, float), times.shape)
            self._add(times, known, starts, ran.loads[:, 0])
            for name, losses in self._losses.items():
                made = self._plans.get(name)
                losses.append(math.nan if made is None else self._last(made))
                del losses[:-WINDOW]
                self._unfitted[name] += 1
            self._own = [*self._own, self._last(self.plan)][-WINDOW:]
            mean, count = self._extra.get(ran.name, (0.0, 0))
            count = min(count + 1, WINDOW)
            self._extra[ran.name] = mean + (taken - self._last(ran) - mean) / count, count
            uncoded = self._losses["uncoded"][-1]
        self._since.append(taken)
        self._saved += uncoded + self._more("uncoded") - taken
        self.step += 1
        if self._probing is not None and ran.name == "uncoded":
            self.plan, self._probing = self._probing, None
        if not preparing and self.step < self.num_steps and len(self._times) >= FIRST:
            self._make_plans()
            if self._probing is None:
                self._choose()
            self._probe()

    def taken_up(self, seconds: float) -> None:
        """A change took so many, and what its preparation took of the iterations before: so may the next."""
        self.change_seconds = seconds + max(self._disturbance, 0.0)
        self._disturbance = 0.0

    def warm_up(self) -> None:
        """Compile the searches, on times of no meaning: that takes as long as many iterations."""
        if self.num_steps < WINDOW:
            return
        times = np.random.default_rng(0).exponential(1.0, (FIRST, self.plan.num_workers)) + 0.5
        for start_ups in (0.0, 0.1 * times[::-1]):
            for rule in list(self._rules.values()):
                rule(Window(times, self._max_stored, self._key, start_ups))

    def _probe(self) -> None:
        """An iteration without redundancy, where somebody's times are not seen and that can be afforded."""
        cost = 2 * self.change_seconds
        if np.any(self._unseen >= _UNSEEN) and self.plan.name != "uncoded" and cost <= self._affordable():
            self._probing, self.plan = self.plan, self._plans["uncoded"]
            self._unseen[:] = 0
            self._spent += cost

    def _add(
        self, times: np.ndarray, known: np.ndarray, start_ups: np.ndarray, first_load: np.ndarray
    ) -> None:
        """With a guess for those who were stopped: the mean of what the worker took that was longer."""
        self._unseen = np.where(known, 0, self._unseen + 1)
        times, starts = np.array(times, float), np.array(start_ups, float)
        for w in np.flatnonzero(~known):
            longer = self._starts[:, w] + self._times[:, w] * first_load[w] > times[w] * first_load[w]
            starts[w] = self._starts[longer, w].mean() if longer.any() else 0.0
            times[w] = self._times[longer, w].mean() if longer.any() else times[w]
        self._times = np.concatenate([self._times, times[None]])[-WINDOW:]
        self._starts = np.concatenate([self._starts, starts[None]])[-WINDOW:]

    def _runtimes(self, made: WorkPlan, last: int = WINDOW) -> np.ndarray:
        """What a plan would have taken in the last iterations."""
        return made.runtimes(self._times[-last:], self._starts[-last:])

    def _last(self, made: WorkPlan) -> float:
        return float(self._runtimes(made, 1)[0])

    def _uncoded(self) -> float:
        return float(np.mean(np.max(self._starts + self._times, axis=1)))

    def _more(self, name: str) -> float:
        """What a rule's iterations take beyond their times: measured, or by how many messages come."""
        if name in self._extra:
            return self._extra[name][0]
        known = next(reversed(self._extra))
        more = self._extra[known][0]
        if self.message_seconds:
            seen = self._times[-_LAST:], self._starts[-_LAST:]
            mine, other = (self._plans[one].messages(*seen) for one in (name, known))
            more += self.message_seconds * (mine - other)
        return more

    def _make_plans(self) -> None:
        size = len(self._times)
        for name, rule in self._rules.items():
            due = self.step % _EVERY == 0
            if name in _SEARCHED:
                due = size in _SEARCHED_AT or (size == WINDOW and self.step % _SEARCHED_EVERY == 0)
            if due or name not in self._plans:
                last = WINDOW if name in _SEARCHED else _LAST
                key = jax.random.fold_in(self._key, self.step)
                window = Window(self._times[-last:], self._max_stored, key, self._starts[-last:])
                self._plans[name] = rule(window)
                self._unfitted[name], self._made_from[name] = 0, size

    def _choose(self) -> None:
        best: tuple[float, str] = (0.0, "")
        horizon, at_hand = self._horizon(), self._affordable()
        for name, made in self._plans.items():
            if made is self.plan:
                continue
            gain, error = self._gain(name)
            cost = self._cost(made)
            clear = gain > 2 * error and gain * horizon > _CLEARLY * cost
            affordable = name == "uncoded" or clear or cost <= at_hand
            if gain > _ERRORS * error and affordable:
                best = max(best, (gain - cost / horizon, name), key=lambda found: found[0])
        if best[1]:
            self._change(best[1], best[0])

    def _cost(self, made: WorkPlan) -> float:
        return self.change_seconds + self.move_seconds * made.moved(self.plan)

    def _horizon(self) -> float:
        changes = [d.step for d in self.decisions[-_LAST_PLANS:]]
        lasted = 2 * (self.step - changes[0]) / len(changes) if len(changes) == _LAST_PLANS else math.inf
        return max(min(self.num_steps - self.step, _HORIZON, lasted), 1)

    def _affordable(self) -> float:
        """So that a training that gains nothing by it loses little."""
        uncoded = self._uncoded() + self._more("uncoded")
        return _STAKE * self.num_steps * uncoded + _REINVESTED * self._saved - self._spent

    def _gain(self, name: str) -> tuple[float, float]:
        """What a rule would save an iteration, and the standard error of that."""
        same = name == self.plan.name  # its plan of now against the one that is run
        knows_more = self._made_from[name] >= _MORE * self._own_made_from
        if same and (name not in _SEARCHED or knows_more):
            saved = self._runtimes(self.plan, _LAST) - self._runtimes(self._plans[name], _LAST)
        else:
            last = self._unfitted[name] if same else WINDOW
            both = zip(self._own[::-1][:last], self._losses[name][::-1][:last], strict=False)
            saved = np.array([own - other for own, other in both])[::-1]
            saved = saved[np.isfinite(saved)] + self._more(self.plan.name) - self._more(name)
        if len(saved) < FIRST:
            return 0.0, math.inf
        mean = float(saved.mean())
        if mean < _LEAST * self._uncoded():
            return 0.0, math.inf
        centred = saved - mean
        variance = float(centred @ centred)
        tied = float(centred[1:] @ centred[:-1]) / variance if variance > 0 else 0.0
        tied = min(max(tied, 0.0), 0.9)
        error = math.sqrt(variance * (1 + tied) / (1 - tied) / len(saved) / (len(saved) - 1))
        return mean, error

    def _change(self, name: str, gain: float) -> None:
        after, took = self._plans[name], float(np.mean(self._since))
        expected = float(np.mean(self._runtimes(after))) + self._more(name)
        self.decisions.append(Decision(self.step, self.plan.name, name, took, expected, gain))
        self._spent += self._cost(after)
        self.plan, self._since, self._own = after, [], list(self._losses[name])
        self._own_made_from = self._made_from[name]
