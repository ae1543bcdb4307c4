// Convolutions and linear layers in float32, each with its relu, that leave out what need not be
// multiplied: numbers of an image that are those of the image before it, and the zeros of a
// gradient, half of it behind a relu. The module sfrl.nets._sparse_conv; sfrl/nets/convolve.py says
// when it is used.
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
#include <numeric>
#include <type_traits>
#include <vector>

namespace py = pybind11;

namespace {

using Array = py::array_t<float, py::array::c_style>;
using Pixels = py::array_t<std::uint8_t, py::array::c_style>;

constexpr int kLane = 8;        // float32 in a register
constexpr int kPositions = 64;  // of an output, in a list: what they see stays in the L1 cache
constexpr int kSide = 64;       // of a linear layer's block of weights, which stays there, too

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

// The relu of count numbers, a multiple of 8. NaN stays NaN.
void rectify(const float* in, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; i += kLane)
    _mm256_storeu_ps(out + i, _mm256_max_ps(_mm256_setzero_ps(), _mm256_loadu_ps(in + i)));
}

// Eight numbers of a gradient before the relu: 0 where it made its output 0.
__m256 through_relu(const float* out_grad, const float* out) {
  const __m256 passes = _mm256_cmp_ps(_mm256_loadu_ps(out), _mm256_setzero_ps(), _CMP_NLE_UQ);
  return _mm256_and_ps(passes, _mm256_loadu_ps(out_grad));
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
  std::size_t size() const { return entries.size(); }

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

// sums [H', W', O] of the image that image b differs from, before the relu -> those of image b.
template <int N>
void add_changes(const Changes& changes, const float* packed, const Shape& s,
                 const std::vector<std::int32_t>& corners, int b, float* sums) {
  constexpr int kTile = kLane * N;  // filters at a time
  for (int tile = 0; tile < s.filters / kTile; ++tile)
    changes.for_rows(s, corners, b, [&](int position, int line, const Entry* first,
                                        const Entry* end, int row_offset) {
      const std::size_t place = line * (s.filters / kTile) + tile;
      add_listed<N>(sums + position * s.filters + tile * kTile, first, end,
                    packed + place * s.row() * kTile - row_offset);
    });
}

// The output of each image, from the sums of the one before it.
template <int N>
void changes_forward(const Changes& changes, const float* weights, const float* bias, float* out,
                     const Shape& s) {
  const std::vector<float> packed = pack<N>(weights, s);
  const std::vector<std::int32_t> corners = s.corners();
  std::vector<float> sums(s.output());
  for (int position = 0; position < s.positions(); ++position)
    std::copy_n(bias, s.filters, &sums[position * s.filters]);
  for (int b = 0; b < s.batch; ++b, out += s.output()) {
    add_changes<N>(changes, packed.data(), s, corners, b, sums.data());
    rectify(sums.data(), s.output(), out);
  }
}

// The gradients of weights and bias. A change stays in all images that follow, and later ones come
// on top of it. So it is multiplied by the sum of the gradients of all their outputs.
template <int N>
void changes_weights_grad(const Changes& changes, const float* out_grad, const float* out,
                          float* grad, float* bias_grad, const Shape& s) {
  constexpr int kTile = kLane * N;  // filters at a time
  std::vector<float> packed(static_cast<std::size_t>(s.filters) * s.kernel * s.row());
  std::vector<float> following(s.output());
  const std::vector<std::int32_t> corners = s.corners();
  for (int b = s.batch - 1; b >= 0; --b) {
    for (std::size_t i = 0, at = b * s.output(); i < s.output(); i += kLane, at += kLane) {
      const __m256 more = through_relu(out_grad + at, out + at);
      _mm256_storeu_ps(&following[i], _mm256_add_ps(_mm256_loadu_ps(&following[i]), more));
    }
    for (int tile = 0; tile < s.filters / kTile; ++tile)
      changes.for_rows(s, corners, b, [&](int position, int line, const Entry* first,
                                          const Entry* end, int row_offset) {
        const std::size_t place = line * (s.filters / kTile) + tile;
        add_to_listed<N>(following.data() + position * s.filters + tile * kTile, first, end,
                         packed.data() + place * s.row() * kTile - row_offset);
      });
  }
  for_packed<N>(s, [&](std::size_t i, std::size_t j) { grad[i] = packed[j]; });
  std::fill_n(bias_grad, s.filters, 0.0f);
  for (std::size_t i = 0; i < s.output(); ++i) bias_grad[i % s.filters] += following[i];
}

// The gradient of the images, from a list for each position of the filters whose gradient is not 0.
template <int N>
void images_grad(const float* out_grad, const float* out, const float* weights, float* grad,
                 const Shape& s) {
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

  for (int b = 0; b < s.batch; ++b, out_grad += s.output(), out += s.output(), grad += s.image()) {
    std::fill_n(grad, s.image(), 0.0f);
    for (int position = 0; position < s.positions(); ++position) {
      const int at = position * s.filters;
      const auto load = [&](int i) { return through_relu(out_grad + at + i, out + at + i); };
      start[position + 1] = list_nonzero(load, offsets.data(), s.filters, start[position]);
    }
    const float* tile = packed.data();
    for (int line = 0; line < s.kernel; ++line)
      for (int part = 0; part < row; part += kTile, tile += kTile * s.filters)
        for (int position = 0; position < s.positions(); ++position)
          add_listed<N>(grad + (corners[position] + line * s.width) * s.channels + part,
                        start[position], start[position + 1], tile);
  }
}

int round_up(int count) { return (count + kLane - 1) / kLane * kLane; }

// The gradient before the relu, [count, 8 of `stride`] -> [8, kPositions]; columns up to the next
// multiple of 8 become 0.
void transpose(const float* out_grad, const float* out, int stride, int count, float* turned) {
  for (int i = 0; i < round_up(count); i += 4)
    for (int j = 0; j < kLane; j += 4) {
      __m128 rows[4];
      for (int k = 0; k < 4; ++k) {
        rows[k] = _mm_setzero_ps();
        if (i + k >= count) continue;
        const int at = (i + k) * stride + j;
        const __m128 passes = _mm_cmpnle_ps(_mm_loadu_ps(out + at), rows[k]);
        rows[k] = _mm_and_ps(passes, _mm_loadu_ps(out_grad + at));
      }
      _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
      for (int k = 0; k < 4; ++k) _mm_storeu_ps(turned + (j + k) * kPositions + i, rows[k]);
    }
}

// The gradients of weights and bias, from a list for each filter of the positions whose gradient is
// not 0.
template <int N>
void weights_grad(const float* images, const float* out_grad, const float* out, float* grad,
                  float* bias_grad, const Shape& s) {
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
  std::fill_n(bias_grad, s.filters, 0.0f);

  for (int b = 0; b < s.batch;
       ++b, images += s.image(), out_grad += s.output(), out += s.output())
    for (int first = 0; first < s.positions(); first += block) {
      const int count = std::min(block, s.positions() - first);
      for (int i = 0; i < count; ++i) offsets[i] = corners[first + i] * s.channels;
      for (int filter = 0; filter < s.filters; ++filter) {
        if (filter % kLane == 0) {
          const int at = first * s.filters + filter;
          transpose(out_grad + at, out + at, s.filters, count, by_filter);
        }
        const float* numbers = by_filter + filter % kLane * kPositions;
        bias_grad[filter] = std::accumulate(numbers, numbers + count, bias_grad[filter]);
        ends[filter] = list_nonzero(numbers_from(numbers), offsets, round_up(count),
                                    &lists[filter * room]);
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

// A linear layer: rows [batch, inputs], weights [outputs, inputs], outputs [batch, outputs]. It is
// computed by blocks of weights, for all rows each; the rows' sums of 64 stay in the L2 cache.
struct Layer {
  int batch, inputs, outputs;

  std::size_t at(int output, int input) const {
    return static_cast<std::size_t>(output) * inputs + input;
  }
};

// Numbers of rows [batch, blocks * 64] that are not 0, by block and then by row, as they are needed.
class Lists {
 public:
  // load(b, i): of row b, eight numbers from the i-th on.
  template <class Load>
  Lists(int batch, int size, Load load) : batch(batch), blocks_(size / kSide) {
    std::array<std::int32_t, kSide> offsets;
    for (int i = 0; i < kSide; ++i) offsets[i] = i * kSide;
    std::array<Entry, kSide + kLane> found;
    for (OfBlock& block : blocks_) block.ends.push_back(0);
    for (int b = 0; b < batch; ++b)
      for (std::size_t i = 0; i < blocks_.size(); ++i) {
        const auto of_block = [&](int j) { return load(b, static_cast<int>(i) * kSide + j); };
        const Entry* end = list_nonzero(of_block, offsets.data(), kSide, found.data());
        const Entry* first = found.data();
        blocks_[i].entries.insert(blocks_[i].entries.end(), first, end);
        blocks_[i].ends.push_back(static_cast<std::int32_t>(blocks_[i].entries.size()));
      }
  }

  // call(b, its entries of this block, their end), for the rows that have some.
  template <class Call>
  void for_rows(int block, Call call) const {
    const Entry* entries = blocks_[block].entries.data();
    const std::int32_t* ends = blocks_[block].ends.data();
    for (int b = 0; b < batch; ++b)
      if (ends[b] != ends[b + 1]) call(b, entries + ends[b], entries + ends[b + 1]);
  }

  int size() const { return static_cast<int>(blocks_.size()) * kSide; }

  const int batch;

 private:
  struct OfBlock {
    std::vector<Entry> entries;
    std::vector<std::int32_t> ends;
  };
  std::vector<OfBlock> blocks_;
};

using Block = std::array<float, kSide * kSide>;
constexpr int kLanes = kSide / kLane;

// in [64 of `in_stride`, 64] -> out [64 of `out_stride`, 64], turned.
void turn(const float* in, int in_stride, float* out, int out_stride) {
  for (int i = 0; i < kSide; i += 4)
    for (int j = 0; j < kSide; j += 4) {
      __m128 rows[4];
      for (int k = 0; k < 4; ++k) rows[k] = _mm_loadu_ps(in + (i + k) * in_stride + j);
      _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
      for (int k = 0; k < 4; ++k) _mm_storeu_ps(out + (j + k) * out_stride + i, rows[k]);
    }
}

void add(const float* numbers, float* sums) {
  for (int i = 0; i < kSide; ++i) sums[i] += numbers[i];
}

// What each row's changes add, and from that its outputs.
void linear_forward(const Lists& changes, const float* weights, const float* bias, float* out,
                    const Layer& s) {
  std::vector<float> parts(static_cast<std::size_t>(s.batch) * kSide);
  Block packed;
  for (int output = 0; output < s.outputs; output += kSide) {
    std::fill(parts.begin(), parts.end(), 0.0f);
    for (int input = 0; input < s.inputs; input += kSide) {
      turn(weights + s.at(output, input), s.inputs, packed.data(), kSide);
      changes.for_rows(input / kSide, [&](int b, const Entry* first, const Entry* end) {
        add_listed<kLanes>(&parts[b * kSide], first, end, packed.data());
      });
    }
    std::array<float, kSide> sums;
    std::copy_n(bias + output, kSide, sums.data());
    for (int b = 0; b < s.batch; ++b) {
      add(&parts[b * kSide], sums.data());
      rectify(sums.data(), kSide, out + b * s.outputs + output);
    }
  }
}

// As `changes_weights_grad`.
void linear_weights_grad(const Lists& changes, const float* out_grad, const float* out,
                         float* grad, float* bias_grad, const Layer& s) {
  std::vector<float> following(static_cast<std::size_t>(s.batch) * kSide);
  Block packed;
  for (int output = 0; output < s.outputs; output += kSide) {
    std::array<float, kSide> sums = {};
    for (int b = s.batch - 1; b >= 0; --b) {
      const std::size_t at = static_cast<std::size_t>(b) * s.outputs + output;
      for (int i = 0; i < kSide; i += kLane)
        _mm256_storeu_ps(&sums[i], _mm256_add_ps(_mm256_loadu_ps(&sums[i]),
                                                 through_relu(out_grad + at + i, out + at + i)));
      std::copy_n(sums.data(), kSide, &following[b * kSide]);
    }
    std::copy_n(sums.data(), kSide, bias_grad + output);
    for (int input = 0; input < s.inputs; input += kSide) {
      packed.fill(0.0f);
      changes.for_rows(input / kSide, [&](int b, const Entry* first, const Entry* end) {
        add_to_listed<kLanes>(&following[b * kSide], first, end, packed.data());
      });
      turn(packed.data(), kSide, grad + s.at(output, input), s.inputs);
    }
  }
}

// The gradient of the rows, from a list for each of the outputs whose gradient is not 0.
void linear_rows_grad(const float* out_grad, const float* out, const float* weights, float* grad,
                      const Layer& s) {
  const Lists lists(s.batch, s.outputs, [&](int b, int i) {
    const std::size_t at = static_cast<std::size_t>(b) * s.outputs + i;
    return through_relu(out_grad + at, out + at);
  });
  std::vector<float> sums(static_cast<std::size_t>(s.batch) * kSide);
  Block packed;
  for (int input = 0; input < s.inputs; input += kSide) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int output = 0; output < s.outputs; output += kSide) {
      for (int i = 0; i < kSide; ++i)
        std::copy_n(weights + s.at(output + i, input), kSide, &packed[i * kSide]);
      lists.for_rows(output / kSide, [&](int b, const Entry* first, const Entry* end) {
        add_listed<kLanes>(&sums[b * kSide], first, end, packed.data());
      });
    }
    for (int b = 0; b < s.batch; ++b)
      std::copy_n(&sums[b * kSide], kSide, grad + static_cast<std::size_t>(b) * s.inputs + input);
  }
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

// How rows [B, K] differ from those before them.
Lists changes_of_rows(const Array& rows) {
  if (rows.ndim() != 2 || rows.shape(1) % kSide)
    throw py::value_error("rows must be [B, K], K a multiple of 64");
  const int batch = static_cast<int>(rows.shape(0)), size = static_cast<int>(rows.shape(1));
  const float* x = rows.data();
  const std::vector<float> zeros(size);
  py::gil_scoped_release released;
  return {batch, size, [&](int b, int i) {
            const float* now = x + static_cast<std::size_t>(b) * size;
            const float* before = b == 0 ? zeros.data() : now - size;
            return _mm256_sub_ps(_mm256_loadu_ps(now + i), _mm256_loadu_ps(before + i));
          }};
}

Sizes sizes_of(const Changes& c) { return {c.batch, c.height, c.width, c.channels}; }

Shape shape_of(const Changes& changes, const Array& weights, const Array& out, int stride) {
  const Shape s = shape_of(sizes_of(changes), sizes_of(weights), sizes_of(out), stride);
  if (tile_of(s.filters) != changes.tile)
    throw py::value_error("the changes must be those for this number of filters");
  return s;
}

// A convolution of images of several environments. It keeps the last image of each, and its sums,
// those before the relu: the next image differs little, and while the weights stay only the changes
// are multiplied. The first sums are made elsewhere.
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
        sums_(environments * shape_.output()) {
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

  // Numbers in which the last images differed from those before them, where that was asked.
  std::size_t changes() const { return num_changes_; }

  // environments [B]: of each image, none twice; out [B, H', W', O]. False, and nothing is done, if
  // one has no image with these weights.
  bool forward(const Images& images, const Environments& environments, Array& out) {
    const Shape s = checked(images, environments, out);
    num_changes_ = 0;
    if (packed_.empty()) throw py::value_error("renew must come first");
    const std::int32_t* of = environments.data();
    if (!std::all_of(of, of + s.batch, [&](int e) { return known_[e]; })) return false;
    const Number* x = images.data();
    float* y = out.mutable_data();
    with_tile(s.filters, [&](auto n) { add<decltype(n)::value>(x, of, y, s); });
    return true;
  }

  // sums: of these images with the present weights.
  void keep(const Images& images, const Environments& environments, const Array& sums) {
    const Shape s = checked(images, environments, sums);
    for (int b = 0; b < s.batch; ++b) {
      const int e = environments.data()[b];
      std::copy_n(sums.data() + b * s.output(), s.output(), &sums_[e * s.output()]);
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
    num_changes_ = changes.size();
    const std::vector<std::int32_t> corners = s.corners();
    for (int b = 0; b < s.batch; ++b) {
      float* const sums = &sums_[environments[b] * s.output()];
      add_changes<N>(changes, packed_.data(), s, corners, b, sums);
      rectify(sums, s.output(), out + b * s.output());
      keep_image(images + b * image_, environments[b]);
    }
  }

  static constexpr bool is_blocks = std::is_same_v<Number, std::uint8_t>;
  const Shape shape_;  // of no images
  const std::size_t image_;
  std::vector<std::uint8_t> known_;  // by environment, since the weights were renewed
  std::vector<Number> images_;
  std::vector<float> sums_;
  std::vector<float> packed_;
  std::size_t num_changes_ = 0;
  int height_ = 0, width_ = 0;  // of an image of blocks, in pixels
};

template <class Number>
void define_kept(py::module_& module, const char* name) {
  using K = Kept<Number>;
  py::class_<K>(module, name)
      .def(py::init<int, const Array&, const typename K::Images&, int>(), py::arg("environments"),
           py::arg("weights").noconvert(), py::arg("image").noconvert(), py::arg("stride"))
      .def_property_readonly("output_shape", &K::output_shape)
      .def_property_readonly("changes", &K::changes)
      .def("renew", &K::renew, py::arg("weights").noconvert())
      .def("forward", &K::forward, py::arg("images").noconvert(),
           py::arg("environments").noconvert(), py::arg("out").noconvert())
      .def("keep", &K::keep, py::arg("images").noconvert(), py::arg("environments").noconvert(),
           py::arg("sums").noconvert());
}

void check_bias(const Array& bias, int outputs) {
  if (bias.ndim() != 1 || bias.shape(0) != outputs) throw py::value_error("bias must be [O]");
}

void check_same(const Array& out_grad, const Array& out) {
  if (sizes_of(out_grad) != sizes_of(out))
    throw py::value_error("outputs and their gradient must have the same shape");
}

void py_changes_forward(const Changes& changes, const Array& weights, const Array& bias, Array& out,
                        int stride) {
  const Shape s = shape_of(changes, weights, out, stride);
  check_bias(bias, s.filters);
  const float *w = weights.data(), *c = bias.data();
  float* y = out.mutable_data();
  with_tile(s.filters, [&](auto n) { changes_forward<decltype(n)::value>(changes, w, c, y, s); });
}

void py_changes_weights_grad(const Changes& changes, const Array& out_grad, const Array& out,
                             Array& grad, Array& bias_grad, int stride) {
  const Shape s = shape_of(changes, grad, out_grad, stride);
  check_same(out_grad, out);
  check_bias(bias_grad, s.filters);
  const float *dy = out_grad.data(), *y = out.data();
  float *dw = grad.mutable_data(), *dc = bias_grad.mutable_data();
  with_tile(s.filters, [&](auto n) {
    changes_weights_grad<decltype(n)::value>(changes, dy, y, dw, dc, s);
  });
}

void py_images_grad(const Array& out_grad, const Array& out, const Array& weights, Array& grad,
                    int stride) {
  const Shape s = shape_of(sizes_of(grad), sizes_of(weights), sizes_of(out_grad), stride);
  check_same(out_grad, out);
  const float *dy = out_grad.data(), *y = out.data(), *w = weights.data();
  float* dx = grad.mutable_data();
  with_tile(s.row(), [&](auto n) { images_grad<decltype(n)::value>(dy, y, w, dx, s); });
}

void py_weights_grad(const Array& images, const Array& out_grad, const Array& out, Array& grad,
                     Array& bias_grad, int stride) {
  const Shape s = shape_of(sizes_of(images), sizes_of(grad), sizes_of(out_grad), stride);
  check_same(out_grad, out);
  check_bias(bias_grad, s.filters);
  const float *x = images.data(), *dy = out_grad.data(), *y = out.data();
  float *dw = grad.mutable_data(), *dc = bias_grad.mutable_data();
  with_tile(s.row(), [&](auto n) { weights_grad<decltype(n)::value>(x, dy, y, dw, dc, s); });
}

Layer layer_of(const Array& weights, int batch) {
  if (weights.ndim() != 2 || weights.shape(0) % kSide || weights.shape(1) % kSide)
    throw py::value_error("weights must be [O, K], multiples of 64");
  return {batch, static_cast<int>(weights.shape(1)), static_cast<int>(weights.shape(0))};
}

void check_rows(const Array& rows, int batch, int size) {
  if (rows.ndim() != 2 || rows.shape(0) != batch || rows.shape(1) != size)
    throw py::value_error("rows must be [B, K], outputs and their gradient [B, O]");
}

Layer layer_of(const Lists& changes, const Array& weights, const Array& bias) {
  const Layer s = layer_of(weights, changes.batch);
  check_bias(bias, s.outputs);
  if (changes.size() != s.inputs)
    throw py::value_error("the changes must be those of rows [B, K]");
  return s;
}

void py_linear_forward(const Lists& changes, const Array& weights, const Array& bias,
                       Array& out) {
  const Layer s = layer_of(changes, weights, bias);
  check_rows(out, s.batch, s.outputs);
  const float *w = weights.data(), *c = bias.data();
  float* y = out.mutable_data();
  py::gil_scoped_release released;
  linear_forward(changes, w, c, y, s);
}

void py_linear_weights_grad(const Lists& changes, const Array& out_grad, const Array& out,
                            Array& grad, Array& bias_grad) {
  const Layer s = layer_of(changes, grad, bias_grad);
  check_rows(out_grad, s.batch, s.outputs);
  check_rows(out, s.batch, s.outputs);
  const float *dy = out_grad.data(), *y = out.data();
  float *dw = grad.mutable_data(), *dc = bias_grad.mutable_data();
  py::gil_scoped_release released;
  linear_weights_grad(changes, dy, y, dw, dc, s);
}

void py_linear_rows_grad(const Array& out_grad, const Array& out, const Array& weights,
                         Array& grad) {
  const Layer s = layer_of(weights, static_cast<int>(out.shape(0)));
  check_rows(out_grad, s.batch, s.outputs);
  check_rows(out, s.batch, s.outputs);
  check_rows(grad, s.batch, s.inputs);
  const float *dy = out_grad.data(), *y = out.data(), *w = weights.data();
  float* dx = grad.mutable_data();
  py::gil_scoped_release released;
  linear_rows_grad(dy, y, w, dx, s);
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
           py::arg("out").noconvert(), py::arg("grad").noconvert(),
           py::arg("bias_grad").noconvert(), py::arg("stride"));
  module.def("images_grad", &py_images_grad, py::arg("out_grad").noconvert(),
             py::arg("out").noconvert(), py::arg("weights").noconvert(),
             py::arg("grad").noconvert(), py::arg("stride"));
  module.def("weights_grad", &py_weights_grad, py::arg("images").noconvert(),
             py::arg("out_grad").noconvert(), py::arg("out").noconvert(),
             py::arg("grad").noconvert(), py::arg("bias_grad").noconvert(), py::arg("stride"));
  py::class_<Lists>(module, "RowChanges")
      .def(py::init(&changes_of_rows), py::arg("rows").noconvert());
  module.def("linear_forward", &py_linear_forward, py::arg("changes"),
             py::arg("weights").noconvert(), py::arg("bias").noconvert(),
             py::arg("out").noconvert());
  module.def("linear_weights_grad", &py_linear_weights_grad, py::arg("changes"),
             py::arg("out_grad").noconvert(), py::arg("out").noconvert(),
             py::arg("grad").noconvert(), py::arg("bias_grad").noconvert());
  module.def("linear_rows_grad", &py_linear_rows_grad, py::arg("out_grad").noconvert(),
             py::arg("out").noconvert(), py::arg("weights").noconvert(),
             py::arg("grad").noconvert());
}
