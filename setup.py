"""Builds the C++ extension; everything else about the package is in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "sfrl._index_queue",
            ["sfrl/csrc/module.cpp"],
            depends=["sfrl/csrc/index_queue.hpp"],
            cxx_std=17,
            extra_compile_args=["-O2"],
            # Without a compiler the package installs all the same: queues then run on faster-fifo.
            optional=True,
        )
    ]
)
