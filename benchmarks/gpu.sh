#!/usr/bin/env bash
# Builds, tests and measures sfrl on a bare machine with a GPU, in under 9 minutes.
#
#     benchmarks/gpu.sh [WHEELS [OUT]]
#
# WHEELS: a folder of wheels for what the machine's Python lacks (installed beside it, without a
# network). Beside PyTorch, NumPy, psutil, rich, tensorboard, pytest and setuptools that is ale-py,
# gymnasium, farama-notifications, faster-fifo, setproctitle, tyro, docstring-parser, typeguard and
# pybind11. OUT: where the tests' report and the figures go; by default only to the terminal.
set -uo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
wheels=${1:-}
out=${2:-$(mktemp -d)}

if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
        "$wheels"/*.whl || exit
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1
# Some containers have 64 MiB, and a run of 16 workers needs half a gigabyte.
[ "$(df --output=avail -m /dev/shm | tail -n 1)" -ge 2000 ] || mount -o remount,size=8G /dev/shm
python3 setup.py -q build_ext --inplace || exit
python3 -c 'import sfrl.nets._images, sfrl.ipc._index_queue, sfrl.envs._screen' || exit

echo "--- correctness, after $((SECONDS - started)) s"
# Warnings of that machine's own plugins are not ours to fail on.
timeout 180 python3 -m pytest -q -p no:cacheprovider -W default -m gpu --durations=5 \
    tests/test_gpu.py tests/nets/test_precision.py tests/maths/test_vtrace.py 2>&1 |
    tee "$out/tests.log" | tail -n 60
tests=${PIPESTATUS[0]}

echo "--- figures, after $((SECONDS - started)) s"
timeout $((525 - SECONDS + started)) python3 -m benchmarks.gpu | tee "$out/figures.log"
figures=${PIPESTATUS[0]}
if [ $((SECONDS - started)) -lt 440 ]; then
    timeout $((530 - SECONDS + started)) python3 -m benchmarks.side_by_side --peer=plain-ppo \
        --pairs=1 --seconds=40 --ours="--loss=vtrace --epochs=1 --report-seconds=1" |
        tee "$out/side_by_side.log"
fi
echo "after $((SECONDS - started)) s: tests ended with $tests, figures with $figures"
exit $((tests > figures ? tests : figures))
