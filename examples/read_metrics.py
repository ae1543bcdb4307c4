"""The curve of a run, and who keeps whom waiting: python read_metrics.py [RUN_FOLDER]

Without a folder it is the newest run below runs/. docs/metrics.md explains every number.
"""

import json
import sys
from pathlib import Path

LINES, WIDTH = 12, 40

folders = [Path(sys.argv[1])] if len(sys.argv) > 1 else list(Path("runs").glob("*/"))
files = [file for folder in folders if (file := folder / "metrics.jsonl").exists()]
if not files:
    sys.exit("no run is there; train one first, or name the folder of a run")
newest = max(files, key=lambda file: file.stat().st_mtime)
# One record a line. The last line of a run that lives may be half written.
lines = newest.read_text().splitlines(keepends=True)
records = [json.loads(line) for line in lines if line.endswith("\n")]
scored = [record for record in records if record["episode_return_mean"] is not None]
if not scored:
    sys.exit(f"{newest.parent}: no episode has ended yet")

scores = [record["episode_return_mean"] for record in scored]
low, high = min(scores), max(scores)
print(f"{newest.parent}\n{'frames':>12} {'minutes':>8} {'score':>9}")
for record in scored[: -1 : len(scored) // LINES + 1] + scored[-1:]:
    score = record["episode_return_mean"]
    bar = "#" * round(WIDTH * (score - low) / (high - low or 1))
    print(f"{record['env_frames']:12,} {record['time_s'] / 60:8.1f} {score:9.1f} {bar}")

shares = {name: records[-1].get(f"{name}/working") for name in ("rollout", "policy", "learner")}
if None not in shares.values():  # an old record, or the first one, has nothing to tell
    print("\nWho worked, in the last interval (the one that never waits limits the run):")
    for name, share in shares.items():
        print(f"{name:>12} {share:.0%}")
