r"""The closed loop: what was measured decides which plan the next iteration has.

Every rule of `rules` has a plan, made from the iterations before, and after each iteration it is known what
each of these plans would have taken in it: a worker's time is its start-up and its load's. So rules are
compared by what they would have done, each by plans that had not seen the iteration (but for plans that are
hardly fitted to it, or know much more than the one that is run), and nothing need be tried out. A change has
to pay: by more than half the comparison's own error, and than what the change costs. Workers that prepare
another plan beside their work are slower than they are: such iterations count as a cost and say no more.

Where workers cannot be interrupted, what they still do when an iteration has ended makes the next one longer,
and a computed time may hide it. So the training begins without redundancy. A plan with redundancy has to win
by the clock against iterations without, tried at growing distances; if not, the training goes back for long.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import jax
import numpy as np

from bcgc_jax.adaptive.plans import WorkPlan
from bcgc_jax.adaptive.rules import MOST_STORED, RULES, Rule, Window

# Iterations before a plan is made; those that searches and comparisons see, at most; and those that shares by
# speed see, for speeds change soon.
FIRST, WINDOW, RECENT = 4, 40, 10
# Made before anything is known, and so of even shares; the training begins with the last one.
CAUTIOUS = ("uncoded", "cyclic")
_SEARCHED = ("nested",)
# Iterations with redundancy before it is tried against none, doubled each time that it wins; those without it
# after it has lost, doubled each time that it loses.
_TRUSTED, _LOST = 2 * FIRST, WINDOW
# A plan that is so many times as fast as none, by the records, needs no trial: who has done two passes for a
# load of one seems half as fast as it is.
_TOO_SLOW = 2.0
# Share of the time that workers would save who all end at once. Where it is less, and they cannot be
# interrupted, redundancy is not begun, and no search compiled (20 s of a core): a pass too many costs more.
_UNEVEN = 0.2
# A gain is at least this share of the time.
_LEAST = 0.005
# Changes may cost this share of all the training's time without redundancy, beside half of what they saved.
_STAKE = 0.015


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
      interruptible: whether workers are free when an iteration ends; else each ends its pass first.
      rules: how plans are made, by name; "uncoded" among them.
      key: of the rules that search.

    >>> planner = Planner(4, 30, key=jax.random.key(0))
    >>> for times in np.random.default_rng(0).exponential(1.0, (20, 4)):
    ...     planner.observe(times, np.ones(4, bool), float(planner.plan.runtimes(times[None])[0]))
    >>> planner.decisions[0].before
    'cyclic'
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
        interruptible: bool = True,
        rules: Mapping[str, Rule] = RULES,
    ) -> None:
        self._rules, self._key = dict(rules), key
        self._max_stored = min(max_stored, num_workers)
        self.change_seconds, self.move_seconds = change_seconds, move_seconds
        self.message_seconds, self._interruptible = message_seconds, interruptible
        self.num_steps, self.step = num_steps, 0
        self._times = self._starts = np.zeros((0, num_workers))
        self._unseen = np.zeros(num_workers, int)
        nothing = Window(np.ones((1, num_workers)), self._max_stored, key)
        self._plans = {name: rules[name](nothing) for name in CAUTIOUS if name in rules}
        # Its own subset first: no worker is later with it than without redundancy, if all are free.
        self.plan = self._plans["uncoded"]
        if interruptible and self._max_stored > 1 and CAUTIOUS[-1] in rules:
            self.plan = self._plans[CAUTIOUS[-1]]
        # What each rule's plan would have taken in each iteration of the window, NaN before it had one; and
        # the plan that is run.
        self._losses = {name: deque[float](maxlen=WINDOW) for name in rules}
        self._own = deque[float](maxlen=WINDOW)
        # After how many iterations a rule's newest plan was made, and the one that is run.
        self._seen, self._made_at, self._own_made_at = 0, dict.fromkeys(rules, 0), 0
        # What iterations took beyond what their times say, by the rule that was run.
        self._extra: dict[str, deque[float]] = {}
        self._since: list[float] = []  # what iterations took since the last decision
        self._disturbance = 0.0
        # The plan that is to go on after some iterations without redundancy, how many, and if it has to win.
        self._probing: WorkPlan | None = None
        self._probes, self._is_trial = 0, False
        # What iterations with each rule's last plan took by the clock, and when it is tried again.
        self._took: dict[str, deque[float]] = {}
        self._trusted, self._trial = _TRUSTED, math.inf
        self._lost, self._barred = _LOST, 0
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
            self._seen += 1
            self._own.append(self._last(self.plan))
            self._extra.setdefault(ran.name, deque(maxlen=WINDOW)).append(taken - self._last(ran))
            uncoded = self._losses["uncoded"][-1]
            self._took.setdefault(ran.name, deque(maxlen=RECENT)).append(taken)
        self._since.append(taken)
        self._saved += uncoded + self._more("uncoded") - taken
        self.step += 1
        if self._probing is not None and ran.name == "uncoded" and not preparing:
            self._probes -= 1
            if not self._probes:
                self._end_probe(self._probing)
        if not preparing and self.step < self.num_steps and len(self._times) >= FIRST:
            worth = self._interruptible or self._is_uneven()
            searched = _SEARCHED if worth else ()
            self._make_plans([name for name in self._rules if name not in _SEARCHED])
            if self._interruptible:
                self._make_plans(searched)
            if self._probing is None and (worth or self.plan.name != "uncoded"):
                self._choose()
            self._probe()
            if not self._interruptible:  # what is compiled holds back no plan
                self._make_plans(searched)

    def leave_out(self) -> None:
        """An iteration of which the times say nothing: a worker was replaced in it."""
        self.step += 1

    def taken_up(self, seconds: float) -> None:
        """A change took so many, and what its preparation took of the iterations before: so may the next."""
        self.change_seconds = seconds + max(self._disturbance, 0.0)
        self._disturbance = 0.0

    def _probe(self) -> None:
        """Iterations without redundancy, if they can be afforded.

        One where somebody was not seen lately; some to compare with, where a plan has to win again.
        """
        if self.plan.name == "uncoded" or self._probing is not None:
            return
        took, without = self._took.get(self.plan.name, ()), self._uncoded() + self._more("uncoded")
        due = self.step >= self._trial and len(took) >= FIRST and fmean(took) > without / _TOO_SLOW
        due &= self.num_steps - self.step > self._trusted  # else there is nothing left to be won
        cost = 2 * self.change_seconds
        if due:
            cost += FIRST * max(without - fmean(took), 0)
        if (due or np.any(self._unseen >= RECENT)) and cost <= self._affordable():
            self._probing, self.plan = self.plan, self._plans["uncoded"]
            self._probes, self._is_trial = (FIRST, True) if due else (1, False)
            self._unseen[:] = 0
            self._spent += cost

    def _end_probe(self, before: WorkPlan) -> None:
        """Go on with the plan that was run before, unless it has lost a trial."""
        self._probing, is_trial = None, self._is_trial
        if not is_trial:
            self.plan = before
            return
        own, without = (np.array(self._took[name]) for name in (before.name, "uncoded"))
        without = without[-FIRST:]
        gain = float(own.mean() - without.mean())
        error = math.hypot(*(x.std() / math.sqrt(x.size) for x in (own, without)))
        self._trusted *= 2
        self._trial = self.step + self._trusted
        self.plan = before
        if 2 * gain > error:
            self._change("uncoded", gain)
            self._barred, self._lost = self.step + self._lost, 2 * self._lost

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
        runtimes = made.runtimes if self._interruptible else made.successive
        return runtimes(self._times[-last:], self._starts[-last:])

    def _last(self, made: WorkPlan) -> float:
        return float(self._runtimes(made, 1 if self._interruptible else FIRST)[-1])

    def _uncoded(self) -> float:
        return float(np.mean(np.max(self._starts + self._times, axis=1)))

    def _more(self, name: str) -> float:
        """What a rule's iterations take beyond their times: measured, or by how many messages come."""
        known = name if name in self._extra else next(reversed(self._extra))
        more = fmean(self._extra[known])
        if known != name and self.message_seconds:
            seen = self._times[-RECENT:], self._starts[-RECENT:]
            mine, other = (self._plans[one].messages(*seen) for one in (name, known))
            more += self.message_seconds * (mine - other)
        return more

    def _make_plans(self, names: Sequence[str]) -> None:
        """Anew once as many iterations came since as a plan was made from, or half of what its rule sees."""
        for name in names:
            rule = self._rules.get(name)
            if rule is None:
                continue
            most = WINDOW if name in _SEARCHED else RECENT
            if self._seen - self._made_at[name] >= min(self._made_at[name], most // 2):
                key = jax.random.fold_in(self._key, self.step)
                window = Window(self._times[-most:], self._max_stored, key, self._starts[-most:])
                self._plans[name], self._made_at[name] = rule(window), self._seen

    def _is_uneven(self) -> bool:
        """Whether so much is to be gained that redundancy may pay though nobody can be interrupted."""
        workers = self._times.shape[1]
        best = float(np.mean(workers / np.sum(1 / (self._starts + self._times), axis=1)))
        return best < (1 - _UNEVEN) * self._uncoded()

    def _choose(self) -> None:
        best: tuple[float, str] = (0.0, "")
        horizon, at_hand = self._horizon(), self._affordable()
        for name, made in self._plans.items():
            if made is self.plan or self.step < self._barred:
                continue
            gain, error = self._gain(name)
            cost = self._cost(made)
            clear = gain > 2 * error and gain * horizon > 2 * cost
            affordable = name == "uncoded" or clear or cost <= at_hand
            if 2 * gain > error and affordable:
                best = max(best, (gain - cost / horizon, name))
        if best[1]:
            self._change(best[1], best[0])

    def _cost(self, made: WorkPlan) -> float:
        return self.change_seconds + self.move_seconds * made.moved(self.plan)

    def _horizon(self) -> float:
        """Iterations that a change is for: those left, two windows, or twice what three plans had before."""
        last = self.decisions[-3:]
        lasted = 2 * (self.step - last[0].step) / 3 if len(last) == 3 else math.inf
        return min(self.num_steps - self.step, 2 * WINDOW, lasted)

    def _affordable(self) -> float:
        """So that a training that gains nothing by it loses little."""
        uncoded = self._uncoded() + self._more("uncoded")
        return _STAKE * self.num_steps * uncoded + self._saved / 2 - self._spent

    def _gain(self, name: str) -> tuple[float, float]:
        """What a rule would save an iteration, and the standard error of that."""
        same = name == self.plan.name  # its plan of now against the one that is run
        # One from more iterations is judged by those too: it is likely to be the better one.
        knows_more = min(self._made_at[name], WINDOW) > self._own_made_at
        if same and (name not in _SEARCHED or knows_more):
            saved = self._runtimes(self.plan, RECENT) - self._runtimes(self._plans[name], RECENT)
        else:
            saved = np.subtract(self._own, self._losses[name])
            saved = saved[max(saved.size - self._seen + self._made_at[name], 0) :] if same else saved
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
        if not self._interruptible and self.plan.name == "uncoded":
            self._trusted = _TRUSTED
            self._trial = self.step + self._trusted
        self._took.pop(name, None)
        self.plan, self._since, self._own = after, [], self._losses[name].copy()
        self._own_made_at = self._made_at[name]
