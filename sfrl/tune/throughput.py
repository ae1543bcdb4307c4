"""The throughput of a run, from what its parts cost: a model in six numbers.

With W rollout workers of S splits of N environments, P policy workers that take batches of b, a
learner with K threads of whose work a share f divides among them, so that l = (1 - f + f/K) * l_1
(Amdahl), and the costs e, p, a, c, l_1, f of `Costs`, in decisions per second:

    cores      cores / (e + p/N + a/b + c + K*l)        l and a/b + c are 0 here on a GPU
    rollout    min(W, cores)*S*N / max(S*(N*e + p), N*e + p + a + c*b)
    inference  P / (a/b + c)
    learning   1 / l

Each would be the throughput if it were the only limit. With a single split (W = S = 1) either the
worker or the policy worker works: with K + 1 cores nobody waits for one, and cores are no limit.
All are less by `_CROWDED` where threads of the learner share cores with other processes. tuner.py
measures the costs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sfrl.records.bottleneck import Bottleneck
from sfrl.settings.config import Config
from sfrl.tune.components import PRECISIONS, Precision

_MAX_US = 1e9  # of a cost: a quarter of an hour
# Threads wait for the one whose core others use, and caches are shared. With two on two cores a run
# makes 0.87 of what is expected without this in bfloat16, 0.92 in float32 (docs/experiments.md,
# "Each thread takes rows of its own").
_CROWDED = 0.87


class Costs(NamedTuple):
    """Microseconds of a core while all are busy; of the networks' process if they are on a GPU."""

    env_us: float  # e: stepping environments, per decision
    split_us: float  # p: a rollout worker's Python, per step of a split
    batch_us: float  # a: inference, per batch
    row_us: float  # c: inference, per decision
    learn_us: float  # l_1: learning in one thread, all epochs, per decision
    precision: Precision
    on_gpu: bool
    parallel: float = 0.0  # f: the share of learning that more threads divide among them

    def problem(self) -> str | None:
        """What keeps them from being costs, where they come from a file."""
        if not all(type(us) in (int, float) and 0 < us < _MAX_US for us in self[:5]):
            return f"costs must be numbers above 0 and below {_MAX_US:g}: {self[:5]!r:.100}"
        if type(self.parallel) not in (int, float) or not 0 <= self.parallel <= 1:
            return f"parallel={self.parallel!r:.40} must lie between 0 and 1"
        if self.precision not in PRECISIONS or type(self.on_gpu) is not bool:
            return f"{self.precision!r:.40} is no precision, or {self.on_gpu!r:.40} no bool"
        return None


class Rates(NamedTuple):
    """Decisions per second that each resource alone would allow."""

    cores: float
    rollout: float
    inference: float
    learning: float

    @property
    def bottleneck(self) -> Bottleneck:
        names: tuple[Bottleneck, ...] = ("cores", "rollout", "inference", "learning")
        return min(zip(self, names, strict=True))[1]

    @property
    def expected(self) -> float:
        """A smooth minimum: what is nearly as scarce as the scarcest makes it wait.

        The power is fitted: with 4 it meets what Pong does on 2 cores, with one split in a worker
        and with two, within 5% (tests/tune/test_tuner.py).
        """
        return float(sum(rate**-4 for rate in self) ** -0.25)


def predict(config: Config, costs: Costs, cores: float) -> Rates:
    """At the smallest inference batch with which the policy workers keep up.

    They take all requests that wait, so that batches grow with the load until they do.
    """
    e, p, a, c, learn = costs[:5]
    threads = config.torch_threads
    learn *= 1 - costs.parallel + costs.parallel / threads
    w, s, n = config.num_workers, config.num_splits, config.envs_per_split
    most = max(n, min(w * s * n // config.num_policy_workers, config.policy_batch_size))
    waits_for_cores = w * s > 1 or cores < 1 + threads
    for b in range(n, most + 1, n):
        act = a / b + c
        on_cores = e + p / n + (0 if costs.on_gpu else act + threads * learn)
        # A round takes a worker's own work, or one split's way there and back if that is longer.
        round_us = max(s * (n * e + p), (n * e + p) + (a + c * b))
        rates = Rates(
            cores=1e6 * cores / on_cores if waits_for_cores else math.inf,
            rollout=1e6 * min(w, cores) * s * n / round_us,
            inference=1e6 * config.num_policy_workers / act,
            learning=1e6 / learn,
        )
        if rates.bottleneck != "inference":
            break
    return (
        Rates(*(_CROWDED * rate for rate in rates)) if is_crowded(config, costs, cores) else rates
    )


def is_crowded(config: Config, costs: Costs, cores: float) -> bool:
    """Whether threads of the learner share cores with other processes."""
    return config.torch_threads > max(1, cores - 2) and not costs.on_gpu
