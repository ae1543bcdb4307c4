"""This machine: what figures were measured on, and the cores, memory and processes there are."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import psutil

_PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "sfrl")
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")  # matrix and vector units for bfloat16


def machine() -> dict[str, object]:
    """Cores, CPU, GPU, versions and commit. Imports no torch."""
    cpu, flags = _fields(Path("/proc/cpuinfo")), cpu_flags()
    return {
        "cores": available_cores(),  # those that this process may use
        "cpu": cpu.get("model name", platform.machine()),
        "cpu_bfloat16": [flag for flag in _CPU_FLAGS if flag in flags],
        "gpu": _gpu(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
    }


@cache
def cpu_flags() -> frozenset[str]:
    """What this CPU can do, by the kernel's names: avx2, amx_tile, ..."""
    return frozenset(_fields(Path("/proc/cpuinfo")).get("flags", "").split())


def _fields(path: Path) -> dict[str, str]:
    """The "name : value" lines of a file in /proc; {} where there is none."""
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpu() -> str | None:
    """NVIDIA's first one, as its driver calls it."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        return _fields(path).get("Model")
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its folder, not installed
        return "unknown"


@cache
def _commit() -> str | None:
    """Of the checkout that this lies in, if it is one. Takes 5 to 10 ms, once."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None  # an installed package may lie in some other project's repository
    described = subprocess.run(
        # It writes nothing, and starts no monitor of the user's.
        [
            *("git", "--no-optional-locks", "-c", "core.fsmonitor=false"),
            *("describe", "--always", "--dirty"),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,  # git refuses a repository of another owner
    )
    return described.stdout.strip() or None


def available_cores() -> int:
    """Cores that this process can keep busy; `usable_cores`, rounded up."""
    return math.ceil(usable_cores())


def usable_cores(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> float:
    """Cores' worth of time that affinity, cpuset and control groups leave to this process.

    Of the groups count cpu.max (cgroup v2) and cpu.cfs_quota_us (v1).
    """
    cores = float(len(os.sched_getaffinity(0)))
    quotas = [_words(group / "cpu.max") for group in _control_groups(own, groups)]
    for group in _control_groups(own, groups, controller="cpu"):
        words = [_words(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        quotas.append([word for number in words for word in number])
    for quota, period in (words for words in quotas if len(words) == 2):
        if quota not in ("max", "-1"):
            cores = min(cores, int(quota) / int(period))
    return cores


def available_memory(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that the machine has free, or the control groups of this process.

    What groups use as a cache of files counts as free: the kernel gives it up when asked.
    """
    free: int = psutil.virtual_memory().available
    versions = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_name, used_name, cache_name in versions:
        for group in _control_groups(own, groups, controller):
            limit, used = _words(group / limit_name), _words(group / used_name)
            if limit and used and limit[0] != "max":
                words = _words(group / "memory.stat")  # names and numbers in turn
                statistics = dict(zip(words[::2], words[1::2], strict=True))
                cache = statistics.get(cache_name, "0")
                free = min(free, int(limit[0]) - int(used[0]) + int(cache))
    return free


def available_processes(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> float:
    """How many more processes and threads the control groups (v2) of this process allow."""
    free = math.inf
    for group in _control_groups(own, groups):
        limit, used = _words(group / "pids.max"), _words(group / "pids.current")
        if limit and used and limit[0] != "max":
            free = min(free, int(limit[0]) - int(used[0]))
    return free


def _control_groups(own: Path, groups: Path, controller: str = "") -> list[Path]:
    """This process's group and those around it: of cgroup v2, or of a controller of v1.

    Within a container of v1 the path is the host's, and leads nowhere; its root is the group then.
    """
    if not own.exists():
        return []
    lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    found = [
        groups / controller / path.removeprefix("/")
        for _, controllers, path in lines
        if controller in controllers.split(",")
    ]
    return [level for group in found for level in (group, *group.parents)]


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
