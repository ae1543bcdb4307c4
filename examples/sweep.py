"""A sweep: which learning rate has the best score after so many frames? python sweep.py

Every rate is tried with the same seeds, and what counts is the mean: one lucky seed is no result.
"""

import argparse
import itertools
import statistics
import sys

from sfrl import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="CartPole-v1")
parser.add_argument("--frames", type=int, default=30_000)
parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
options = parser.parse_args()

scores = {rate: [] for rate in options.rates}
for rate, seed in itertools.product(options.rates, options.seeds):
    summary = train(
        env=options.env,
        learning_rate=rate,
        seed=seed,
        train_frames=options.frames,
        serial=True,  # the same seed gives the same score, so what differs is the rate's doing
    )
    if summary.episode_return_mean is None:
        sys.exit("no episode has ended yet; raise --frames")
    scores[rate].append(summary.episode_return_mean)

for rate in sorted(scores, key=lambda rate: statistics.mean(scores[rate]), reverse=True):
    mean, each = statistics.mean(scores[rate]), ", ".join(f"{score:.1f}" for score in scores[rate])
    print(f"learning_rate={rate:g}: {mean:.1f} ({each})")
