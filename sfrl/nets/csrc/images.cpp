// uint8 images -> blocks of pixels, the input of NatureCNN. The module sfrl.nets._images;
// sfrl/nets/images.py says what a block is, and makes the same with torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace py = pybind11;

namespace {

constexpr int kBlock = 4;  // pixels in a row and in a column of a block

// The compiler makes a version for each, and the loader takes the best one for the machine.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define VECTORIZED
#endif

// Four lines of a channel -> its 16 pixels of every block; a block has `depth` pixels in all.
void gather_blocks(const std::uint8_t* lines, std::size_t width, int num_blocks, std::size_t depth,
                   std::uint8_t* __restrict out) {
  for (int x = 0; x < num_blocks; ++x, lines += kBlock, out += depth)
    for (int line = 0; line < kBlock; ++line)
      std::memcpy(out + line * kBlock, lines + line * width, kBlock);
}

VECTORIZED void convert(const std::uint8_t* pixels, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = static_cast<float>(pixels[i]);
}

// bfloat16 is the upper half of a float32, and has all integers up to 256.
VECTORIZED void convert(const std::uint8_t* pixels, int count, std::uint16_t* out) {
  for (int i = 0; i < count; ++i) {
    const float value = static_cast<float>(pixels[i]);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    out[i] = static_cast<std::uint16_t>(bits >> 16);
  }
}

using Images = py::array_t<std::uint8_t, py::array::c_style>;

// images [B, C, H, W] -> out [B, H/4, W/4, C*16].
template <typename T>
void blocks(const Images& images, py::array_t<T, py::array::c_style>& out) {
  if (images.ndim() != 4 || out.ndim() != 4 || out.shape(0) != images.shape(0) ||
      out.shape(1) != images.shape(2) / kBlock || out.shape(2) != images.shape(3) / kBlock ||
      out.shape(3) != images.shape(1) * kBlock * kBlock)
    throw py::value_error("images must be [B, C, H, W] and out [B, H/4, W/4, C*16]");
  const int num_channels = static_cast<int>(images.shape(1));
  const int height = static_cast<int>(images.shape(2)), width = static_cast<int>(images.shape(3));
  const int num_blocks = width / kBlock, depth = num_channels * kBlock * kBlock;
  const std::size_t image_size = static_cast<std::size_t>(num_channels) * height * width;
  const std::uint8_t* image = images.data();
  T* block = out.mutable_data();
  const auto num_images = images.shape(0);

  py::gil_scoped_release released;
  std::vector<std::uint8_t> row(static_cast<std::size_t>(num_blocks) * depth);
  for (py::ssize_t i = 0; i < num_images; ++i, image += image_size) {
    for (int y = 0; y + kBlock <= height; y += kBlock, block += row.size()) {
      for (int channel = 0; channel < num_channels; ++channel)
        gather_blocks(image + (channel * height + y) * width, width, num_blocks, depth,
                      row.data() + channel * kBlock * kBlock);
      convert(row.data(), static_cast<int>(row.size()), block);
    }
  }
}

}  // namespace

PYBIND11_MODULE(_images, module) {
  module.def("blocks_float32", &blocks<float>, py::arg("images").noconvert(),
             py::arg("out").noconvert());
  module.def("blocks_bfloat16", &blocks<std::uint16_t>, py::arg("images").noconvert(),
             py::arg("out").noconvert());
}
