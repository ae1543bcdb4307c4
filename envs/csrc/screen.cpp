// Atari screens: two frames of palette indices -> one max-pooled grey picture of 84x84.
//
// The module envs._screen. envs/screen.py says what a picture is, and makes the same in NumPy; the
// arithmetic here is that one, operation by operation, so that both give the same bytes.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"

namespace {

constexpr int kSize = 84;
constexpr int kColors = 256;
constexpr int kMaxTaps = 8;

// [width] grey values of one row of the screen -> [84]. taps: [num_taps][84].
VECTORIZED void narrow_row(const float* __restrict grey, const std::int32_t* __restrict indices,
                           const float* __restrict weights, int num_taps, float* __restrict out) {
  for (int x = 0; x < kSize; ++x) out[x] = grey[indices[x]] * weights[x];
  for (int k = 1; k < num_taps; ++k)
    for (int x = 0; x < kSize; ++x)
      out[x] += grey[indices[k * kSize + x]] * weights[k * kSize + x];
}

// The weighted sum of narrow rows, rounded half to even: adding 1.5 * 2^23 leaves no fraction.
VECTORIZED void sum_rows(const float* const* rows, const float* weights, int num_taps,
                         std::uint8_t* __restrict out) {
  constexpr float kRound = 12582912.0f;
  float sum[kSize];
  for (int x = 0; x < kSize; ++x) sum[x] = rows[0][x] * weights[0];
  for (int k = 1; k < num_taps; ++k) {
    const float* row = rows[k];
    for (int x = 0; x < kSize; ++x) sum[x] += row[x] * weights[k];
  }
  for (int x = 0; x < kSize; ++x)
    out[x] = static_cast<std::uint8_t>(static_cast<int>((sum[x] + kRound) - kRound));
}

// One game's screen. Consecutive frames of a game differ in few rows: what a row of the screen
// came to is kept, and only what depends on changed rows is computed anew.
class Screen {
 public:
  Screen(Indices column_indices, Weights column_weights, Indices row_indices, Weights row_weights,
         int height, int width)
      : column_indices_(std::move(column_indices)), column_weights_(std::move(column_weights)),
        row_indices_(std::move(row_indices)), row_weights_(std::move(row_weights)),
        height_(height), width_(width), pooled_row_(width), narrow_(height * kSize),
        picture_(kSize * kSize), is_changed_(height) {
    if (column_indices_.ndim() != 2 || column_indices_.shape(1) != kSize ||
        row_indices_.ndim() != 2 || row_indices_.shape(1) != kSize ||
        column_indices_.shape(0) > kMaxTaps || row_indices_.shape(0) > kMaxTaps ||
        column_indices_.shape(0) < 1 || row_indices_.shape(0) < 1 ||
        column_weights_.size() != column_indices_.size() ||
        row_weights_.size() != row_indices_.size())
      throw py::value_error("taps must be [1 to 8, 84], indices and weights alike");
    const auto in_range = [](const Indices& indices, int size) {
      return std::all_of(indices.data(), indices.data() + indices.size(),
                         [size](std::int32_t i) { return 0 <= i && i < size; });
    };
    if (!in_range(column_indices_, width) || !in_range(row_indices_, height))
      throw py::value_error("a tap lies outside of the screen");
    grey_of_.fill(-1);
    for (Pooled& pooled : frames_) {
      pooled.colors.resize(static_cast<std::size_t>(height) * width);
      pooled.grey.resize(pooled.colors.size());
    }
  }

  // Learn the palette from a frame in both forms.
  void learn_colors(const Bytes& frame, const Bytes& grey) {
    check(frame);
    check(grey);
    for (py::ssize_t i = 0; i < frame.size(); ++i)
      grey_of_[frame.data()[i]] = static_cast<std::int16_t>(grey.data()[i]);
  }

  // Frame 0 or 1 of the two that are pooled. Whether all of its colors were known.
  bool set_frame(std::size_t which, const Bytes& frame) {
    check(frame);
    Pooled& pooled = frames_.at(which);
    for (int y = 0; y < height_; ++y) {
      const std::size_t start = static_cast<std::size_t>(y) * width_;
      const std::uint8_t* row = frame.data() + start;
      if (pooled.is_set && std::memcmp(&pooled.colors[start], row, width_) == 0) continue;
      int lowest = 0;  // -1 if a color is unknown
      for (int x = 0; x < width_; ++x) {
        const std::int16_t grey = grey_of_[row[x]];
        lowest = std::min<int>(lowest, grey);
        pooled.grey[start + x] = static_cast<std::uint8_t>(grey);
      }
      if (lowest < 0) {
        pooled.is_set = false;
        return false;
      }
      std::memcpy(&pooled.colors[start], row, width_);
      is_changed_[y] = true;
    }
    pooled.is_set = true;
    return true;
  }

  void draw(Bytes& picture) {
    if (picture.size() != kSize * kSize) throw py::value_error("picture must be [84, 84]");
    if (!frames_[0].is_set || !frames_[1].is_set)
      throw py::value_error("both frames must be set before a picture is drawn");
    for (int y = 0; y < height_; ++y)
      if (is_changed_[y]) update_row(y);
    for (int y = 0; y < kSize; ++y) update_picture_row(y);
    std::fill(is_changed_.begin(), is_changed_.end(), false);
    std::memcpy(picture.mutable_data(), picture_.data(), picture_.size());
  }

 private:
  struct Pooled {
    std::vector<std::uint8_t> colors, grey;  // [height, width]
    bool is_set = false;
  };

  void update_row(int y) {
    const std::size_t start = static_cast<std::size_t>(y) * width_;
    const std::uint8_t *a = &frames_[0].grey[start], *b = &frames_[1].grey[start];
    for (int x = 0; x < width_; ++x) pooled_row_[x] = std::max(a[x], b[x]);
    narrow_row(pooled_row_.data(), column_indices_.data(), column_weights_.data(),
               static_cast<int>(column_indices_.shape(0)), &narrow_[y * kSize]);
  }

  void update_picture_row(int y) {
    const int num_taps = static_cast<int>(row_indices_.shape(0));
    std::array<const float*, kMaxTaps> rows;
    std::array<float, kMaxTaps> weights;
    bool is_changed = false;
    for (int k = 0; k < num_taps; ++k) {
      const std::int32_t row = row_indices_.data()[k * kSize + y];
      rows[k] = &narrow_[row * kSize];
      weights[k] = row_weights_.data()[k * kSize + y];
      is_changed |= is_changed_[row];
    }
    if (is_changed) sum_rows(rows.data(), weights.data(), num_taps, &picture_[y * kSize]);
  }

  void check(const Bytes& frame) const {
    if (frame.size() != static_cast<py::ssize_t>(height_) * width_)
      throw py::value_error("a frame must have " + std::to_string(height_) + "x" +
                            std::to_string(width_) + " pixels");
  }

  Indices column_indices_;  // [taps, 84]
  Weights column_weights_;
  Indices row_indices_;
  Weights row_weights_;
  int height_, width_;
  std::array<std::int16_t, kColors> grey_of_;  // -1: not seen yet
  std::array<Pooled, 2> frames_;
  std::vector<float> pooled_row_;      // [width]
  std::vector<float> narrow_;          // [height, 84]
  std::vector<std::uint8_t> picture_;  // [84, 84]
  std::vector<char> is_changed_;       // [height] since the last picture
};

}  // namespace

PYBIND11_MODULE(_screen, module) {
  py::class_<Screen>(module, "Screen")
      .def(py::init<Indices, Weights, Indices, Weights, int, int>(), py::arg("column_indices"),
           py::arg("column_weights"), py::arg("row_indices"), py::arg("row_weights"),
           py::arg("height"), py::arg("width"))
      .def("learn_colors", &Screen::learn_colors, py::arg("frame"), py::arg("grey"))
      .def("set_frame", &Screen::set_frame, py::arg("which"), py::arg("frame"))
      .def("draw", &Screen::draw, py::arg("picture").noconvert());
}
