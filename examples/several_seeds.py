"""Train with several seeds at the same time, and tell how sure the mean of their scores is.

    python several_seeds.py --seeds=5 --env=CartPole-v1 --train-frames=60_000

All flags but --seeds are those of `sfrl train`; without any the above is done. Each run has one
thread (--serial), so that as many run at a time as there are cores, and the same seeds give the
same scores.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# Student's t: the mean of n runs lies within T95[n] standard errors of the true one, in 95 of 100
# such experiments. With few runs it is far more than the usual 1.96.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}

parser = argparse.ArgumentParser(allow_abbrev=False)  # --seed is no short --seeds
parser.add_argument("--seeds", type=int, choices=T95, default=5)
options, flags = parser.parse_known_args()
names = {flag.partition("=")[0] for flag in flags}
if "--seed" in names:
    parser.error("each run has a seed of its own; --seeds=5 says how many there are")
if "--run-dir" in names:
    parser.error("each run has a folder of its own; leave --run-dir out, and it is in runs/")
flags = flags or ["--env=CartPole-v1", "--train-frames=60_000"]


def score_of(seed):
    """The mean return of the last 100 episodes of a run with this seed."""
    command = [sys.executable, "-m", "sfrl", "train", "--serial", f"--seed={seed}", *flags]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    summary = json.loads(run.stdout.splitlines()[-1])
    print(f"seed {seed}: {summary['episode_return_mean']} ({summary['run_dir']})", flush=True)
    return summary["episode_return_mean"]


with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    scores = list(pool.map(score_of, range(1, options.seeds + 1)))
if None in scores:
    sys.exit("no episode has ended in some run; raise --train-frames")
mean = statistics.mean(scores)
margin = T95[len(scores)] * statistics.stdev(scores) / math.sqrt(len(scores))
print(f"mean {mean:.1f}, 95% interval {mean - margin:.1f} to {mean + margin:.1f}")
