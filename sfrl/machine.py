"""What figures were measured on: a figure without it means nothing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

from sfrl.defaults import available_cores

_PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "sfrl")
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")  # matrix and vector units for bfloat16


def machine() -> dict[str, object]:
    """Cores, CPU, GPU, versions and commit. Imports no torch."""
    cpu = _fields(Path("/proc/cpuinfo"))
    return {
        "cores": available_cores(),  # those that this process may use
        "cpu": cpu.get("model name", platform.machine()),
        "cpu_bfloat16": [flag for flag in _CPU_FLAGS if flag in cpu.get("flags", "").split()],
        "gpu": _gpu(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
    }


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


def _commit() -> str:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"  # an installed package may lie in some other project's repository
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,  # git refuses a repository of another owner
    )
    return described.stdout.strip() or "unknown"
