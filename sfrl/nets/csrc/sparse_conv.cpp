// Convolutions in float32 that leave out what need not be multiplied: numbers of an image that are
// those of the image before it, and zeros of a gradient, half of it behind a relu. The module
// sfrl.nets._sparse_conv; sfrl/nets/convolve.py says when it is used.
//
// All work in the same way: a list has the numbers that count, and for each of them a vector is
// added, times the number, to a sum. Memory lies as in torch's channels_last: images [B, H, W, C],
// weights [O, K, K, C]. So K pixels of a line, which is what one line of a filter sees, are K*C
// numbers that follow each other: a "row" below.
#include <immintrin.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace py = pybind11;

namespace {

using Array = py::array_t<float, py::array::c_style>;
using Pixels = py::array_t<std::uint8_t, py::array::c_style>;

constexpr int kLane = 8;        // float32 in a register
constexpr int kPositions = 64;  // of an output, in a list: what they see stays in the L1 cache

// A number of a list, and where its vector begins.
struct Entry {
  float number;
  std::int32_t offset;
};

struct Shape {
  int batch, height, width, channels;  // of the input
  int out_height, out_width, filters;  // of the output
  int kernel, stride;

  int positions() const { return out_height * out_width; }
  int row() const { return kernel * channels; }
  std::size_t image() const { return static_cast<std::size_t>(height) * width * channels; }
  std::size_t output() const { return static_cast<std::size_t>(positions()) * filters; }
  // By position of the output: the pixel in the upper left of what it sees.
  std::vector<std::int32_t> corners() const {
    std::vector<std::int32_t> pixels;
    for (int y = 0; y < out_height; ++y)
      for (int x = 0; x < out_width; ++x) pixels.push_back((y * width + x) * stride);
    return pixels;
  }
};

// mask of 8 -> the bits that are set, in order.
struct SetBits {
  alignas(64) std::uint8_t of[256][kLane] = {};
  SetBits() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0, n = 0; bit < kLane; ++bit)
        if (mask >> bit & 1) of[mask][n++] = static_cast<std::uint8_t>(bit);
  }
};
const SetBits set_bits;

// Entries of the numbers that are not 0 (NaN is not), in order. Returns where they end.
// load(i): eight numbers from the i-th on. count must be a multiple of 8; there must be room for 7
// entries more than there are.
template <class Load>
Entry* list_nonzero(Load load, const std::int32_t* offsets, int count, Entry* out) {
  for (int i = 0; i < count; i += kLane) {
    const __m256 eight = load(i);
    const __m256 places =
        _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets + i)));
    const int mask =
        _mm256_movemask_ps(_mm256_cmp_ps(eight, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    if (mask == 0) continue;
    const auto* bits = reinterpret_cast<const __m128i*>(set_bits.of[mask]);
    const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bits));
    const __m256 found = _mm256_permutevar8x32_ps(eight, order);
    const __m256 found_places = _mm256_permutevar8x32_ps(places, order);
    const __m256 low = _mm256_unpacklo_ps(found, found_places);    // entries 0, 1, 4, 5
    const __m256 high = _mm256_unpackhi_ps(found, found_places);   // entries 2, 3, 6, 7
    auto* to = reinterpret_cast<float*>(out);
    _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(to + kLane, _mm256_permute2f128_ps(low, high, 0x31));
    out += __builtin_popcount(static_cast<unsigned>(mask));
  }
  return out;
}

// For list_nonzero: what lies in memory.
auto numbers_from(const float* numbers) {
  return [numbers](int i) { return _mm256_loadu_ps(numbers + i); };
}

// sum [8 * N] += number * vectors[offset:], for each entry. Not inlined: its loop needs all
// registers.
template <int N>
__attribute__((noinline)) void add_listed(float* sum, const Entry* entry, const Entry* end,
                                          const float* vectors) {
  __m256 sums[N];
#pragma GCC unroll 12
  for (int v = 0; v < N; ++v) sums[v] = _mm256_loadu_ps(sum + kLane * v);
  for (; entry != end; ++entry) {
    const __m256 number = _mm256_broadcast_ss(&entry->number);
    const float* vector = vectors + entry->offset;
#pragma GCC unroll 12
    for (int v = 0; v < N; ++v)
      sums[v] = _mm256_fmadd_ps(number, _mm256_loadu_ps(vector + kLane * v), sums[v]);
  }
#pragma GCC unroll 12
  for (int v = 0; v < N; ++v) _mm256_storeu_ps(sum + kLane * v, sums[v]);
}

// sums[offset:] [8 * N] += number * vector, for each entry.
template <int N>
__attribute__((noinline)) void add_to_listed(const float* vector, const Entry* entry,
                                             const Entry* end, float* sums) {
  __m256 parts[N];
#pragma GCC unroll 12
  for (int v = 0; v < N; ++v) parts[v] = _mm256_loadu_ps(vector + kLane * v);
  for (; entry != end; ++entry) {
    const __m256 number = _mm256_broadcast_ss(&entry->number);
    float* sum = sums + entry->offset;
#pragma GCC unroll 12
    for (int v = 0; v < N; ++v)
      _mm256_storeu_ps(sum + kLane * v,
                       _mm256_fmadd_ps(number, parts[v], _mm256_loadu_ps(sum + kLane * v)));
  }
}

// How images differ from those before them, listed once for the output and the gradient of the
// weights. The entries of a line lie in its order, so that those of a row are one list.
class Changes {
 public:
  // tile: numbers in the vector that is added for an entry.
  Changes(int batch, int height, int width, int channels, int tile)
      : batch(batch), height(height), width(width), channels(channels), tile(tile) {
    for (int i = 0; i < width * channels; ++i) offsets.push_back(i * tile);
    start.reserve(static_cast<std::size_t>(batch) * pixels() + 1);
    start.push_back(0);
  }

  // images [B, H, W, C], and the one that each differs from.
  void list(const float* images, const std::vector<const float*>& before) {
    std::vector<Entry> found(channels + kLane);
    for (int b = 0; b < batch; images += image(), ++b)
      for (int pixel = 0; pixel < pixels(); ++pixel) {
        const float* now = images + pixel * channels;
        const float* then = before[b] + pixel * channels;
        const auto difference = [&](int i) {
          return _mm256_sub_ps(_mm256_loadu_ps(now + i), _mm256_loadu_ps(then + i));
        };
        const Entry* end = list_nonzero(difference, offsets_of(pixel), channels, found.data());
        add_pixel(found.data(), end);
      }
  }

  // images [B, channels / 16, image_height, image_width], whose blocks of 4x4 are the pixels here;
  // sfrl.nets.images tells the order of their channels.
  void list_blocks(const std::uint8_t* images, const std::vector<const std::uint8_t*>& before,
                   int image_height, int image_width) {
    const std::size_t plane = static_cast<std::size_t>(image_height) * image_width;
    const std::size_t image = channels / (kBlock * kBlock) * plane;
    std::vector<Entry> found(channels);
    std::vector<std::uint32_t> changed(width);
    for (int b = 0; b < batch; images += image, ++b)
      for (int y = 0; y < height; ++y) {
        const auto line = [&](int i) {  // of a line of blocks: channel i / 4, line i % 4
          return i / kBlock * plane + (y * kBlock + i % kBlock) * image_width;
        };
        std::fill(changed.begin(), changed.end(), 0);
        for (int i = 0; i < channels / kBlock; ++i)
          for (int x = 0; x < width; ++x)
            changed[x] |= four(images + line(i), x) ^ four(before[b] + line(i), x);
        for (int x = 0; x < width; ++x) {
          Entry* end = found.data();
          for (int i = 0; changed[x] && i < channels / kBlock; ++i)
            for (int column = 0; column < kBlock; ++column) {
              const std::size_t at = line(i) + x * kBlock + column;
              if (const int difference = images[at] - before[b][at])
                *end++ = {static_cast<float>(difference), offsets_of(x)[i * kBlock + column]};
            }
          add_pixel(found.data(), end);
        }
      }
  }

  // call(position, line, its row's entries, their end, the offset of the row's first number), for
  // the rows of image b that changed.
  template <class Call>
  void for_rows(const Shape& s, const std::vector<std::int32_t>& corners, int b, Call call) const {
    const std::int64_t* of_image = start.data() + static_cast<std::size_t>(b) * pixels();
    for (int line = 0; line < s.kernel; ++line)
      for (int position = 0; position < s.positions(); ++position) {
        const int pixel = corners[position] + line * width;
        const Entry* first = entries.data() + of_image[pixel];
        const Entry* end = entries.data() + of_image[pixel + s.kernel];
        if (first != end) call(position, line, first, end, *offsets_of(pixel));
      }
  }

  std::size_t image() const { return static_cast<std::size_t>(pixels()) * channels; }

  static constexpr int kBlock = 4;
  const int batch, height, width, channels, tile;

 private:
  static std::uint32_t four(const std::uint8_t* line, int x) {
    std::uint32_t pixels;
    std::memcpy(&pixels, line + x * kBlock, sizeof pixels);
    return pixels;
  }
  int pixels() const { return height * width; }
  const std::int32_t* offsets_of(int pixel) const {
    return offsets.data() + pixel % width * channels;
  }
  void add_pixel(const Entry* first, const Entry* end) {
    entries.insert(entries.end(), first, end);
    start.push_back(static_cast<std::int64_t>(entries.size()));
  }

  std::vector<std::int32_t> offsets;  // of a line's numbers
  std::vector<Entry> entries;
  std::vector<std::int64_t> start;  // by image and pixel
};

// weights [O, K, K*C] <-> packed [K, tiles of O, K*C, tile].
template <int N, class Move>
void for_packed(const Shape& s, Move move) {
  constexpr int kTile = kLane * N;
  std::size_t i = 0;
  for (int filter = 0; filter < s.filters; ++filter)
    for (int line = 0; line < s.kernel; ++line)
      for (int column = 0; column < s.row(); ++column, ++i) {
        const std::size_t tile = line * (s.filters / kTile) + filter / kTile;
        move(i, (tile * s.row() + column) * kTile + filter % kTile);
      }
}

template <int N>
std::vector<float> pack(const float* weights, const Shape& s) {
  std::vector<float> packed(static_cast<std::size_t>(s.filters) * s.kernel * s.row());
  for_packed<N>(s, [&](std::size_t i, std::size_t j) { packed[j] = weights[i]; });
  return packed;
}

// output(b): the output of what image b differs from, to which its changes are added.
template <int N, class Output>
void add_changes(const Changes& changes, const float* packed, const Shape& s, Output output) {
  constexpr int kTile = kLane * N;  // filters at a time
  const std::vector<std::int32_t> corners = s.corners();
  for (int b = 0; b < s.batch; ++b) {
    float* const out = output(b);
    for (int tile = 0; tile < s.filters / kTile; ++tile)
      changes.for_rows(s, corners, b, [&](int position, int line, const Entry* first,
                                          const Entry* end, int row_offset) {
        const std::size_t place = line * (s.filters / kTile) + tile;
        add_listed<N>(out + position * s.filters + tile * kTile, first, end,
                      packed + place * s.row() * kTile - row_offset);
      });
  }
}

// The output of each image, from that of the one before it.
template <int N>
void changes_forward(const Changes& changes, const float* weights, const float* bias, float* out,
                     const Shape& s) {
  const std::vector<float> packed = pack<N>(weights, s);
  add_changes<N>(changes, packed.data(), s, [&](int b) {
    float* const now = out + b * s.output();
    if (b > 0) std::copy_n(now - s.output(), s.output(), now);
    else
      for (int position = 0; position < s.positions(); ++position)
        std::copy_n(bias, s.filters, now + position * s.filters);
    return now;
  });
}

// The gradient of the weights. A change stays in all images that follow, and later ones come on top
// of it. So it is multiplied by the sum of the gradients of all their outputs.
template <int N>
void changes_weights_grad(const Changes& changes, const float* out_grad, float* grad,
                          const Shape& s) {
  constexpr int kTile = kLane * N;  // filters at a time
  std::vector<float> packed(static_cast<std::size_t>(s.filters) * s.kernel * s.row());
  std::vector<float> following(s.output());
  const std::vector<std::int32_t> corners = s.corners();
  for (int b = s.batch - 1; b >= 0; --b) {
    for (std::size_t i = 0; i < s.output(); ++i) following[i] += out_grad[b * s.output() + i];
    for (int tile = 0; tile < s.filters / kTile; ++tile)
      changes.for_rows(s, corners, b, [&](int position, int line, const Entry* first,
                                          const Entry* end, int row_offset) {
        const std::size_t place = line * (s.filters / kTile) + tile;
        add_to_listed<N>(following.data() + position * s.filters + tile * kTile, first, end,
                         packed.data() + place * s.row() * kTile - row_offset);
      });
  }
  for_packed<N>(s, [&](std::size_t i, std::size_t j) { grad[i] = packed[j]; });
}

// The gradient of the images, which must be 0 before; from a list for each position of the filters
// whose gradient is not 0.
template <int N>
void images_grad(const float* out_grad, const float* weights, float* grad, const Shape& s) {
  constexpr int kTile = kLane * N;  // numbers of a row at a time
  const int row = s.row(), tiles = s.kernel * row / kTile;
  std::vector<float> packed(static_cast<std::size_t>(s.filters) * tiles * kTile);
  for (int filter = 0; filter < s.filters; ++filter)
    for (int tile = 0; tile < tiles; ++tile, weights += kTile)
      std::copy_n(weights, kTile, &packed[(static_cast<std::size_t>(tile) * s.filters + filter) *
                                          kTile]);
  const std::vector<std::int32_t> corners = s.corners();
  std::vector<std::int32_t> offsets(s.filters);
  for (int filter = 0; filter < s.filters; ++filter) offsets[filter] = filter * kTile;
  std::vector<Entry> lists(s.output() + kLane);
  std::vector<Entry*> start(s.positions() + 1, lists.data());

  for (int b = 0; b < s.batch; ++b, out_grad += s.output(), grad += s.image()) {
    for (int position = 0; position < s.positions(); ++position)
      start[position + 1] = list_nonzero(numbers_from(out_grad + position * s.filters),
                                         offsets.data(), s.filters, start[position]);
    const float* tile = packed.data();
    for (int line = 0; line < s.kernel; ++line)
      for (int part = 0; part < row; part += kTile, tile += kTile * s.filters)
        for (int position = 0; position < s.positions(); ++position)
          add_listed<N>(grad + (corners[position] + line * s.width) * s.channels + part,
                        start[position], start[position + 1], tile);
  }
}

int round_up(int count) { return (count + kLane - 1) / kLane * kLane; }

// in [count, 8 of `stride`] -> out [8, kPositions]; columns up to the next multiple of 8 become 0.
void transpose(const float* in, int stride, int count, float* out) {
  for (int i = 0; i < round_up(count); i += 4)
    for (int j = 0; j < kLane; j += 4) {
      __m128 rows[4];
      for (int k = 0; k < 4; ++k)
        rows[k] = i + k < count ? _mm_loadu_ps(in + (i + k) * stride + j) : _mm_setzero_ps();
      _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
      for (int k = 0; k < 4; ++k) _mm_storeu_ps(out + (j + k) * kPositions + i, rows[k]);
    }
}

// The gradient of the weights, from a list for each filter of the positions whose gradient is not
// 0.
template <int N>
void weights_grad(const float* images, const float* out_grad, float* grad, const Shape& s) {
  constexpr int kTile = kLane * N;  // numbers of a row at a time
  const int row = s.row(), tiles = s.kernel * row / kTile;
  const int blocks = (s.positions() + kPositions - 1) / kPositions;
  const int block = (s.positions() + blocks - 1) / blocks;
  std::vector<float> packed(static_cast<std::size_t>(tiles) * s.filters * kTile);
  const std::vector<std::int32_t> corners = s.corners();
  const std::size_t room = kPositions + kLane;
  std::vector<Entry> lists(s.filters * room);
  std::vector<Entry*> ends(s.filters);
  std::int32_t offsets[kPositions] = {};
  float by_filter[kLane * kPositions];

  for (int b = 0; b < s.batch; ++b, images += s.image(), out_grad += s.output())
    for (int first = 0; first < s.positions(); first += block) {
      const int count = std::min(block, s.positions() - first);
      for (int i = 0; i < count; ++i) offsets[i] = corners[first + i] * s.channels;
      for (int filter = 0; filter < s.filters; ++filter) {
        if (filter % kLane == 0)
          transpose(out_grad + first * s.filters + filter, s.filters, count, by_filter);
        ends[filter] = list_nonzero(numbers_from(by_filter + filter % kLane * kPositions), offsets,
                                    round_up(count), &lists[filter * room]);
      }
      float* sum = packed.data();
      for (int line = 0; line < s.kernel; ++line)
        for (int part = 0; part < row; part += kTile) {
          const float* seen = images + line * s.width * s.channels + part;
          for (int filter = 0; filter < s.filters; ++filter, sum += kTile)
            add_listed<N>(sum, &lists[filter * room], ends[filter], seen);
        }
    }
  for (int filter = 0; filter < s.filters; ++filter)
    for (int tile = 0; tile < tiles; ++tile, grad += kTile)
      std::copy_n(&packed[(static_cast<std::size_t>(tile) * s.filters + filter) * kTile], kTile,
                  grad);
}

using Sizes = std::array<int, 4>;

Sizes sizes_of(const py::array& array) {
  if (array.ndim() != 4)
    throw py::value_error("images, weights and outputs must have four dimensions");
  Sizes sizes;
  for (int axis = 0; axis < 4; ++axis) sizes[axis] = static_cast<int>(array.shape(axis));
  return sizes;
}

void check_multiples(int channels, int filters) {
  if (filters < 1 || filters % kLane || channels % kLane)
    throw py::value_error("channels and filters must be multiples of 8");
}

Shape shape_of(const Sizes& images, const Sizes& weights, const Sizes& out, int stride) {
  const Shape s{images[0], images[1], images[2],  images[3], out[1],
                out[2],    out[3],    weights[1], stride};
  if (out[0] != s.batch || weights[0] != s.filters || weights[2] != s.kernel ||
      weights[3] != s.channels || stride < 1 || s.height < s.kernel || s.width < s.kernel ||
      s.out_height != (s.height - s.kernel) / stride + 1 ||
      s.out_width != (s.width - s.kernel) / stride + 1)
    throw py::value_error(
        "images must be [B, H, W, C], weights [O, K, K, C], outputs [B, H', W', O]");
  check_multiples(s.channels, s.filters);
  return s;
}

template <class Call>
void with_tile(int size, Call call) {
  py::gil_scoped_release released;
  if (size % (12 * kLane) == 0) call(std::integral_constant<int, 12>());
  else if (size % (8 * kLane) == 0) call(std::integral_constant<int, 8>());
  else if (size % (4 * kLane) == 0) call(std::integral_constant<int, 4>());
  else if (size % (2 * kLane) == 0) call(std::integral_constant<int, 2>());
  else call(std::integral_constant<int, 1>());
}

// Filters at a time, by the functions of changes.
int tile_of(int filters) {
  int tile = 0;
  with_tile(filters, [&](auto n) { tile = kLane * decltype(n)::value; });
  return tile;
}

// For each image, the one before it; for the first, zeros.
template <class Array_>
auto ones_before(const Array_& images, const std::vector<typename Array_::value_type>& zeros) {
  std::vector<const typename Array_::value_type*> before;
  for (py::ssize_t b = 0; b < images.shape(0); ++b)
    before.push_back(b == 0 ? zeros.data() : images.data(b - 1));
  return before;
}

// The changes of images with these sizes [B, H, W, C], to be listed.
Changes changes_with(const Sizes& sizes, int filters) {
  check_multiples(sizes[3], filters);
  return {sizes[0], sizes[1], sizes[2], sizes[3], tile_of(filters)};
}

Changes changes_of(const Array& images, int filters) {
  Changes changes = changes_with(sizes_of(images), filters);
  const std::vector<float> zeros(changes.image());
  const auto before = ones_before(images, zeros);
  const float* x = images.data();
  py::gil_scoped_release released;
  changes.list(x, before);
  return changes;
}

Changes changes_of_blocks(const Pixels& images, int filters) {
  const Sizes sizes = sizes_of(images);
  constexpr int block = Changes::kBlock;
  Changes changes = changes_with(
      {sizes[0], sizes[2] / block, sizes[3] / block, sizes[1] * block * block}, filters);
  const std::vector<std::uint8_t> zeros(sizes[1] * sizes[2] * sizes[3]);
  const auto before = ones_before(images, zeros);
  const std::uint8_t* x = images.data();
  py::gil_scoped_release released;
  changes.list_blocks(x, before, sizes[2], sizes[3]);
  return changes;
}

Sizes sizes_of(const Changes& c) { return {c.batch, c.height, c.width, c.channels}; }

Shape shape_of(const Changes& changes, const Array& weights, const Array& out, int stride) {
  const Shape s = shape_of(sizes_of(changes), sizes_of(weights), sizes_of(out), stride);
  if (tile_of(s.filters) != changes.tile)
    throw py::value_error("the changes must be those for this number of filters");
  return s;
}

// A convolution of images of several environments. It keeps the last image of each, and its output:
// the next image differs little, and while the weights stay only the changes are multiplied. A first
// output is made elsewhere.
template <class Number>  // float: images [B, H, W, C]; uint8: [B, C/16, 4H, 4W], as blocks
class Kept {
 public:
  using Images = py::array_t<Number, py::array::c_style>;
  using Environments = py::array_t<std::int32_t, py::array::c_style>;

  Kept(int environments, const Array& weights, const Images& images, int stride)
      : shape_(shape_with(sizes_of(weights), images, stride)),
        image_(images.size()),
        known_(environments),
        images_(environments * image_),
        outputs_(environments * shape_.output()) {
    if constexpr (is_blocks) height_ = images.shape(1), width_ = images.shape(2);
  }

  void renew(const Array& weights) {
    if (sizes_of(weights) !=
        Sizes{shape_.filters, shape_.kernel, shape_.kernel, shape_.channels})
      throw py::value_error("weights must have the shape of the first ones");
    const float* x = weights.data();
    with_tile(shape_.filters, [&](auto n) { packed_ = pack<decltype(n)::value>(x, shape_); });
    std::fill(known_.begin(), known_.end(), 0);
  }

  std::array<int, 3> output_shape() const {
    return {shape_.out_height, shape_.out_width, shape_.filters};
  }

  // environments [B]: of each image, none twice; out [B, H', W', O]. False, and nothing is done, if
  // one has no image with these weights.
  bool forward(const Images& images, const Environments& environments, Array& out) {
    const Shape s = checked(images, environments, out);
    if (packed_.empty()) throw py::value_error("renew must come first");
    const std::int32_t* of = environments.data();
    if (!std::all_of(of, of + s.batch, [&](int e) { return known_[e]; })) return false;
    const Number* x = images.data();
    float* y = out.mutable_data();
    with_tile(s.filters, [&](auto n) { add<decltype(n)::value>(x, of, y, s); });
    return true;
  }

  // The outputs of these images with the present weights.
  void keep(const Images& images, const Environments& environments, const Array& out) {
    const Shape s = checked(images, environments, out);
    for (int b = 0; b < s.batch; ++b) {
      const int e = environments.data()[b];
      std::copy_n(out.data() + b * s.output(), s.output(), &outputs_[e * s.output()]);
      keep_image(images.data() + b * image_, e);
      known_[e] = 1;
    }
  }

 private:
  static Shape shape_with(const Sizes& weights, const Images& images, int stride) {
    Sizes sizes;
    if (images.ndim() != 3) throw py::value_error("one image has three dimensions");
    if constexpr (is_blocks)
      sizes = {0, static_cast<int>(images.shape(1)) / Changes::kBlock,
               static_cast<int>(images.shape(2)) / Changes::kBlock,
               static_cast<int>(images.shape(0)) * Changes::kBlock * Changes::kBlock};
    else
      sizes = {0, static_cast<int>(images.shape(0)), static_cast<int>(images.shape(1)),
               static_cast<int>(images.shape(2))};
    if (stride < 1) throw py::value_error("the stride must be positive");
    const int kernel = weights[1];
    return shape_of(sizes, weights,
                    {0, (sizes[1] - kernel) / stride + 1, (sizes[2] - kernel) / stride + 1,
                     weights[0]},
                    stride);
  }

  // The shape of this batch.
  Shape checked(const Images& images, const Environments& environments, const Array& out) const {
    Shape s = shape_;
    s.batch = static_cast<int>(environments.size());
    if (images.size() != static_cast<py::ssize_t>(s.batch * image_) ||
        out.size() != static_cast<py::ssize_t>(s.batch * s.output()))
      throw py::value_error("images and outputs must have a row for each environment");
    std::vector<std::uint8_t> is_seen(known_.size());
    for (int b = 0; b < s.batch; ++b) {
      const auto e = static_cast<std::size_t>(environments.data()[b]);
      if (e >= is_seen.size() || is_seen[e]++)
        throw py::value_error("environments must be known, and none there twice");
    }
    return s;
  }

  void keep_image(const Number* image, int environment) {
    std::copy_n(image, image_, &images_[environment * image_]);
  }

  template <int N>
  void add(const Number* images, const std::int32_t* environments, float* out, const Shape& s) {
    std::vector<const Number*> before;
    for (int b = 0; b < s.batch; ++b) before.push_back(&images_[environments[b] * image_]);
    Changes changes(s.batch, s.height, s.width, s.channels, kLane * N);
    if constexpr (is_blocks)
      changes.list_blocks(images, before, height_, width_);
    else
      changes.list(images, before);
    const auto kept = [&](int b) { return &outputs_[environments[b] * s.output()]; };
    add_changes<N>(changes, packed_.data(), s, kept);
    for (int b = 0; b < s.batch; ++b) {
      std::copy_n(kept(b), s.output(), out + b * s.output());
      keep_image(images + b * image_, environments[b]);
    }
  }

  static constexpr bool is_blocks = std::is_same_v<Number, std::uint8_t>;
  const Shape shape_;  // of no images
  const std::size_t image_;
  std::vector<std::uint8_t> known_;  // by environment, since the weights were renewed
  std::vector<Number> images_;
  std::vector<float> outputs_;
  std::vector<float> packed_;
  int height_ = 0, width_ = 0;  // of an image of blocks, in pixels
};

template <class Number>
void define_kept(py::module_& module, const char* name) {
  using K = Kept<Number>;
  py::class_<K>(module, name)
      .def(py::init<int, const Array&, const typename K::Images&, int>(), py::arg("environments"),
           py::arg("weights").noconvert(), py::arg("image").noconvert(), py::arg("stride"))
      .def_property_readonly("output_shape", &K::output_shape)
      .def("renew", &K::renew, py::arg("weights").noconvert())
      .def("forward", &K::forward, py::arg("images").noconvert(),
           py::arg("environments").noconvert(), py::arg("out").noconvert())
      .def("keep", &K::keep, py::arg("images").noconvert(), py::arg("environments").noconvert(),
           py::arg("out").noconvert());
}

void py_changes_forward(const Changes& changes, const Array& weights, const Array& bias, Array& out,
                        int stride) {
  const Shape s = shape_of(changes, weights, out, stride);
  if (bias.ndim() != 1 || bias.shape(0) != s.filters) throw py::value_error("bias must be [O]");
  const float *w = weights.data(), *c = bias.data();
  float* y = out.mutable_data();
  with_tile(s.filters, [&](auto n) { changes_forward<decltype(n)::value>(changes, w, c, y, s); });
}

void py_changes_weights_grad(const Changes& changes, const Array& out_grad, Array& grad,
                             int stride) {
  const Shape s = shape_of(changes, grad, out_grad, stride);
  const float* dy = out_grad.data();
  float* dw = grad.mutable_data();
  with_tile(s.filters, [&](auto n) {
    changes_weights_grad<decltype(n)::value>(changes, dy, dw, s);
  });
}

void py_images_grad(const Array& out_grad, const Array& weights, Array& grad, int stride) {
  const Shape s = shape_of(sizes_of(grad), sizes_of(weights), sizes_of(out_grad), stride);
  const float *dy = out_grad.data(), *w = weights.data();
  float* dx = grad.mutable_data();
  with_tile(s.row(), [&](auto n) { images_grad<decltype(n)::value>(dy, w, dx, s); });
}

void py_weights_grad(const Array& images, const Array& out_grad, Array& grad, int stride) {
  const Shape s = shape_of(sizes_of(images), sizes_of(grad), sizes_of(out_grad), stride);
  const float *x = images.data(), *dy = out_grad.data();
  float* dw = grad.mutable_data();
  with_tile(s.row(), [&](auto n) { weights_grad<decltype(n)::value>(x, dy, dw, s); });
}

}  // namespace

PYBIND11_MODULE(_sparse_conv, module) {
  define_kept<float>(module, "Kept");
  define_kept<std::uint8_t>(module, "KeptBlocks");
  py::class_<Changes>(module, "Changes")
      .def(py::init(&changes_of), py::arg("images").noconvert(), py::arg("filters"))
      .def_static("of_blocks", &changes_of_blocks, py::arg("images").noconvert(),
                  py::arg("filters"))
      .def_property_readonly("shape",
                             [](const Changes& c) { return py::tuple(py::cast(sizes_of(c))); })
      .def("forward", &py_changes_forward, py::arg("weights").noconvert(),
           py::arg("bias").noconvert(), py::arg("out").noconvert(), py::arg("stride"))
      .def("weights_grad", &py_changes_weights_grad, py::arg("out_grad").noconvert(),
           py::arg("grad").noconvert(), py::arg("stride"));
  module.def("images_grad", &py_images_grad, py::arg("out_grad").noconvert(),
             py::arg("weights").noconvert(), py::arg("grad").noconvert(), py::arg("stride"));
  module.def("weights_grad", &py_weights_grad, py::arg("images").noconvert(),
             py::arg("out_grad").noconvert(), py::arg("grad").noconvert(), py::arg("stride"));
}
