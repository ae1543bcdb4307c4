// uint8 images made smaller, a pixel the mean of an area. The module envs._areas; envs/areas.py
// makes the same in NumPy, with the arithmetic here, operation by operation.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.hpp"

namespace {

VECTORIZED void add_row(const std::uint8_t* __restrict row, float weight, int width,
                        float* __restrict sum) {
  for (int x = 0; x < width; ++x) sum[x] += static_cast<float>(row[x]) * weight;
}

VECTORIZED void add_columns(const float* __restrict line, const std::int32_t* __restrict indices,
                            const float* __restrict weights, int width, float* __restrict sum) {
  for (int x = 0; x < width; ++x) sum[x] += line[indices[x]] * weights[x];
}

// Rounded half to even: adding 1.5 * 2^23 leaves no fraction.
VECTORIZED void round_row(const float* __restrict sum, int width, std::uint8_t* __restrict out) {
  constexpr float kRound = 12582912.0f;
  for (int x = 0; x < width; ++x)
    out[x] = static_cast<std::uint8_t>(static_cast<int>((sum[x] + kRound) - kRound));
}

void check(const Indices& indices, const Weights& weights, int size, int old_size) {
  if (indices.ndim() != 2 || weights.ndim() != 2 || indices.shape(1) != size ||
      weights.shape(1) != size || indices.shape(0) != weights.shape(0))
    throw py::value_error("taps must be [taps, size], indices and weights alike");
  if (!std::all_of(indices.data(), indices.data() + indices.size(),
                   [old_size](std::int32_t i) { return 0 <= i && i < old_size; }))
    throw py::value_error("a tap lies outside of the image");
}

void shrink(const Bytes& images, Bytes& small, const Indices& row_indices,
            const Weights& row_weights, const Indices& column_indices,
            const Weights& column_weights) {
  const auto ndim = images.ndim();
  if (ndim < 2 || small.ndim() != ndim ||
      !std::equal(images.shape(), images.shape() + ndim - 2, small.shape()))
    throw py::value_error("images must be [..., H, W] and small [..., h, w]");
  const auto side = [](const Bytes& array, int from_last) {
    return static_cast<int>(array.shape(array.ndim() - from_last));
  };
  const int height = side(images, 2), width = side(images, 1);
  const int rows = side(small, 2), columns = side(small, 1);
  check(row_indices, row_weights, rows, height);
  check(column_indices, column_weights, columns, width);
  std::vector<float> line(width), sum(columns);
  const std::uint8_t* image = images.data();
  std::uint8_t* out = small.mutable_data();
  const py::ssize_t pixels = static_cast<py::ssize_t>(height) * width;
  for (const std::uint8_t* end = image + images.size(); image < end; image += pixels) {
    for (int y = 0; y < rows; ++y, out += columns) {
      std::fill(line.begin(), line.end(), 0.0f);
      for (py::ssize_t k = 0; k < row_indices.shape(0); ++k) {
        const std::uint8_t* row =
            image + static_cast<py::ssize_t>(row_indices.data()[k * rows + y]) * width;
        add_row(row, row_weights.data()[k * rows + y], width, line.data());
      }
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (py::ssize_t k = 0; k < column_indices.shape(0); ++k)
        add_columns(line.data(), column_indices.data() + k * columns,
                    column_weights.data() + k * columns, columns, sum.data());
      round_row(sum.data(), columns, out);
    }
  }
}

}  // namespace

PYBIND11_MODULE(_areas, module) {
  module.def("shrink", &shrink, py::arg("images").noconvert(), py::arg("small").noconvert(),
             py::arg("row_indices"), py::arg("row_weights"), py::arg("column_indices"),
             py::arg("column_weights"));
}
