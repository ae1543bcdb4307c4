// What the extensions of environments share: arrays, and loops made for the machine.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>

namespace py = pybind11;

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Weights = py::array_t<float, py::array::c_style>;
using Indices = py::array_t<std::int32_t, py::array::c_style>;

// The compiler makes a version for each, and the loader takes the best one for the machine.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORIZED
#endif
