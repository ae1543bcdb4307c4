"""The tuner's choice against a grid of settings by hand: what each of them trains, in turn.

    python -m benchmarks.grid --env=Pong
    python -m benchmarks.grid --env=CartPole-v1 --seconds=30

Every arrangement of rollout workers, splits and environments trains with the same training batch,
for `--seconds`, through train.py. Everyone's second run comes after everyone's first: a shared
machine's speed changes by the hour. Run it on an otherwise idle machine. The last line printed is
JSON, with machine and commit.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shlex
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks.runs import read_metrics, throughput
from benchmarks.side_by_side import run
from sfrl import settle
from sfrl.commands.train import read_flags
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.machine import machine


@dataclass(frozen=True, kw_only=True)
class Args:
    env: str = "Pong"
    """An Atari game or a Gymnasium id."""
    seconds: float = 40.0
    """Time of each run, start-up included."""
    rounds: int = 2
    """Runs of each arrangement; its result is their median."""
    workers: tuple[int, ...] = (1, 2, 3)
    """--num-workers to try."""
    splits: tuple[int, ...] = (1, 2)
    """--num-splits to try."""
    envs: tuple[int, ...] = (8, 16, 32)
    """--envs-per-worker to try."""
    max_envs: int = 0
    """Arrangements with more environments in all are left out. Those with more than one training
    batch per round are faster and need more frames for the same score. 0: all are tried."""
    flags: str = ""
    """More flags for train.py, the tuner included."""


class Arrangement(NamedTuple):
    num_workers: int
    num_splits: int
    envs_per_worker: int
    num_policy_workers: int
    torch_threads: int
    precision: str

    def flags(self) -> list[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in self._asdict().items()]


def arrangement_of(config: Config) -> Arrangement:
    return Arrangement(*(getattr(config, name) for name in Arrangement._fields))


def tuned(args: Args) -> Config:
    """What train.py would choose, measured now. The training batch in it is everybody's."""
    flags = [f"--env={args.env}", "--run-dir=unused", *shlex.split(args.flags), "--tune=now"]
    given = read_flags(flags)
    config, spec = settle.settle(given)
    return settle.tuned(config, given, spec)


def grid(args: Args, config: Config) -> list[Arrangement]:
    """The arrangements that can be trained as `config` is: in its training batch, precision and
    the learner's threads."""
    found = []
    for w, s, n in itertools.product(args.workers, args.splits, args.envs):
        if w * n > (args.max_envs or math.inf):
            continue
        try:
            candidate = dataclasses.replace(
                config, num_workers=w, num_splits=s, envs_per_worker=n, num_policy_workers=1
            )
        except ConfigError:  # its slots do not make up the batch
            continue
        found.append(arrangement_of(candidate))
    return found


def flags_of(args: Args, config: Config, arrangement: Arrangement) -> list[str]:
    """Of train.py, for `arrangement` with `config`'s training batch."""
    return [
        *(f"--env={args.env}", f"--train-seconds={args.seconds}", "--report-seconds=1"),
        *("--tune=off", f"--batch-size={config.batch_size}", f"--minibatches={config.minibatches}"),
        *(*shlex.split(args.flags), *arrangement.flags()),
    ]


def frames_per_s(args: Args, config: Config, arrangement: Arrangement) -> float:
    """One run's throughput, start-up and shutdown left out."""
    with tempfile.TemporaryDirectory() as scratch:
        flags = [*flags_of(args, config, arrangement), f"--run-dir={scratch}/run"]
        run([sys.executable, "train.py", *flags])
        return throughput(read_metrics(Path(scratch, "run", "metrics.jsonl"))[:-1])


def main(args: Args) -> None:
    config = tuned(args)
    chosen = arrangement_of(config)
    arrangements = list(dict.fromkeys([chosen, *grid(args, config)]))
    rates: dict[Arrangement, list[float]] = {arrangement: [] for arrangement in arrangements}
    for _ in range(args.rounds):
        for arrangement in arrangements:
            rates[arrangement].append(frames_per_s(args, config, arrangement))
            print(f"{' '.join(arrangement.flags())}: {rates[arrangement][-1]:.0f}", flush=True)

    medians = {arrangement: statistics.median(of) for arrangement, of in rates.items()}
    best = max(medians.values())
    print(f"\n{'workers':>8} {'splits':>8} {'envs':>8} {'frames/s':>10} {'of best':>8}")
    for arrangement, rate in sorted(medians.items(), key=lambda item: -item[1]):
        workers, splits, envs = arrangement[:3]
        mark = "  <- the tuner's" if arrangement == chosen else ""
        print(f"{workers:8} {splits:8} {envs:8} {rate:10,.0f} {rate / best:8.2f}{mark}")
    result = {
        "bench": "grid",
        **machine(),
        **asdict(args),
        "tuned": config.tuned,
        "frames_per_s": [
            {**arrangement._asdict(), "runs": [round(rate) for rate in rates[arrangement]]}
            for arrangement in arrangements
        ],
        "tuned_of_best": round(medians[chosen] / best, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args))
