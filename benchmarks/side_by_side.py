"""Our throughput against a peer's: in turn on this machine, in one run, the ratio of each pair.

    python -m benchmarks.side_by_side --ours="--epochs=1 --loss=vtrace" --find-best
    python -m benchmarks.side_by_side --ours="--epochs=1" --peer=sample-factory:32x256 --pairs=3
    python -m benchmarks.side_by_side --peer=plain-ppo --peer-flags="--envs=envpool --num-envs=32"

Run it on an otherwise idle machine. A shared machine's speed changes by the hour, so only figures
of one pair may be compared: ours, peer, ours, peer. Start-up is left out by the same rule for both
(`runs.throughput`). The last line printed is JSON, with machine and commit.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks.runs import read_metrics, throughput
from benchmarks.sample_factory import SETTINGS

ROOT = Path(__file__).parents[1]
IDLE_LOAD = 0.5  # processes that are ready to run, averaged over the last minute


@dataclass(frozen=True, kw_only=True)
class Args:
    ours: str = ""
    """Flags for train.py. Without a --model here ours trains the peers' network, nature_cnn."""
    peer: str = "sample-factory:32x256"
    """sample-factory:SETTING or plain-ppo."""
    peer_flags: str = ""
    """More flags for the peer's script in this folder."""
    env: str = "Pong"
    """The Atari game, for both."""
    seconds: float = 60.0
    """Time of each run, start-up included."""
    pairs: int = 2
    """Runs of each."""
    find_best: bool = False
    """First run every setting of Sample Factory once, and take the fastest."""


class Pair(NamedTuple):
    ours: float  # frames/s
    peer: float  # frames/s

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def run(command: Sequence[str]) -> str:
    """What the command prints, from the repository's root.

    Raises:
        RuntimeError: it failed. The text holds the end of what it said.
    """
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{ended.stdout}{ended.stderr[-4000:]}")
    return ended.stdout


def measure_ours(args: Args) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        flags = [f"--env={args.env}", f"--train-seconds={args.seconds}", f"--run-dir={scratch}/run"]
        flags.append("--model=nature_cnn")  # what the peers train; a later flag of `ours` counts
        run([sys.executable, "train.py", *flags, *shlex.split(args.ours)])
        points = read_metrics(Path(scratch) / "run" / "metrics.jsonl")
        return throughput(points[:-1])  # the last interval holds the shutdown


def measure_peer(args: Args, peer: str) -> float:
    flags = [*peer_command(peer), f"--env={args.env}", f"--seconds={args.seconds}"]
    output = run([sys.executable, "-m", *flags, *shlex.split(args.peer_flags)])
    rate: float = json.loads(output.splitlines()[-1])["frames_per_s"]
    return rate


def peer_command(peer: str) -> list[str]:
    """The module to run and its flags. Raises ValueError if there is no such peer or setting."""
    peers = {
        "plain-ppo": ["benchmarks.plain_ppo"],
        **{
            f"sample-factory:{setting}": ["benchmarks.sample_factory", f"--setting={setting}"]
            for setting in SETTINGS
        },
    }
    if peer not in peers:
        raise ValueError(f"peer={peer!r} is unknown; choose one of {', '.join(peers)}")
    return peers[peer]


def best_setting(args: Args) -> str:
    """The peer that is Sample Factory with its fastest setting."""
    rates = {}
    for setting in SETTINGS:
        peer = f"sample-factory:{setting}"
        rates[peer] = measure_peer(args, peer)
        print(f"{peer:32} {rates[peer]:8.0f} frames/s", flush=True)
    return max(rates, key=rates.__getitem__)


def main(args: Args) -> None:
    from sfrl.settings.machine import machine

    peer_command(args.peer)  # a wrong name must not come to light after the first run of ours
    if (load := os.getloadavg()[0]) > IDLE_LOAD:
        print(f"the machine is busy (load {load:.1f}): figures will be low", file=sys.stderr)
    peer = best_setting(args) if args.find_best else args.peer

    pairs = []
    for index in range(args.pairs):
        pairs.append(Pair(measure_ours(args), measure_peer(args, peer)))
        print(
            f"pair {index + 1}: ours {pairs[-1].ours:.0f} frames/s, "
            f"{peer} {pairs[-1].peer:.0f} frames/s, ratio {pairs[-1].ratio:.2f}",
            flush=True,
        )
    median_ratio = statistics.median(pair.ratio for pair in pairs)
    print(f"median ratio {median_ratio:.2f}")
    result = {
        "bench": "side_by_side",
        **machine(),
        **asdict(args),
        "peer": peer,
        "frames_per_s": [[round(rate) for rate in pair] for pair in pairs],
        "ratios": [round(pair.ratio, 3) for pair in pairs],
        "median_ratio": round(median_ratio, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args))
