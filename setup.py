"""Builds the C++ extensions; everything else about the package is in pyproject.toml."""

import platform

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup


def extension(
    name: str, source: str, *depends: str, flags: tuple[str, ...] = ()
) -> Pybind11Extension:
    return Pybind11Extension(
        name,
        [source],
        depends=list(depends),
        cxx_std=17,
        # No fused multiply-add: results are those of NumPy and OpenCV, to the last bit.
        extra_compile_args=["-O3", "-ffp-contract=off", *flags],
        # Without a compiler the package installs all the same, and says at start what is slower.
        optional=True,
    )


AVX2 = (
    [
        extension(
            "sfrl.nets._sparse_conv", "sfrl/nets/csrc/sparse_conv.cpp", flags=("-mavx2", "-mfma")
        )
    ]
    if platform.machine() in ("x86_64", "AMD64")
    else []
)

setup(
    ext_modules=[
        *AVX2,
        extension(
            "sfrl.ipc._index_queue", "sfrl/ipc/csrc/module.cpp", "sfrl/ipc/csrc/index_queue.hpp"
        ),
        extension("sfrl.nets._images", "sfrl/nets/csrc/images.cpp"),
        extension("sfrl.envs._areas", "envs/csrc/areas.cpp", "envs/csrc/arrays.hpp"),
        extension("sfrl.envs._screen", "envs/csrc/screen.cpp", "envs/csrc/arrays.hpp"),
    ]
)
