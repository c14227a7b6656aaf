// The stem, the downsampling and a block of CAS-ViT in the deploy form, for a CPU: see native.py.
//
// PyTorch runs each step over the map by itself, so that in a block the map passes the memory up to 20 times, for little
// arithmetic. Here, several steps are computed for a few rows of the image at a time, which stay in the caches between
// them. Maps are in channels_last format, (N, H, W, C). Channels are computed LANES at a time; where their number is no
// multiple of that, the last lanes overlap those before.
//
// In fp32 the 1x1 convolutions are part of this. In bf16 they are left to PyTorch, which has instructions for them, and
// what lies between them is computed in fp32.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, TILE_ROWS = 8, TILE_VECTORS = 3;  // of 32 registers, 24 hold sums
#else
constexpr int LANES = 8, TILE_ROWS = 6, TILE_VECTORS = 2;  // of 16 registers, 12 hold sums
#endif
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

// Allocates numbers at the start of a cache line, so that no LANES of them lie on two lines, and leaves them undefined.
template <typename T>
struct Aligned {
  typedef T value_type;
  Aligned() = default;
  template <typename Other>
  Aligned(const Aligned<Other>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* numbers, size_t) { ::operator delete(numbers, std::align_val_t(64)); }
  template <typename Other>
  void construct(Other* number) { ::new (number) Other; }
  template <typename Other, typename Value>
  void construct(Other* number, Value&& value) { ::new (number) Other(value); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
typedef std::vector<float, Aligned<float>> Numbers;

struct BFloat16 {
  uint16_t bits;
};

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

inline Floats load(const BFloat16* from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  Words bits = __builtin_convertvector(x, Words) << 16;
  return (Floats)bits;
}

inline void store(BFloat16* to, Floats x) {  // rounds to nearest, ties to even
  Words bits = (Words)x;
  bits += 0x7fff + ((bits >> 16) & 1);
  bits = x == x ? bits : Words{} + 0x7fc00000u;  // NaN, which the sum may have turned into a number
  Halves upper = __builtin_convertvector(bits >> 16, Halves);
  std::memcpy(to, &upper, sizeof upper);
}

// GCC would read some numbers from memory again for each product, which takes half as long again. With AVX512, it does
// not.
inline void keep_in_register([[maybe_unused]] Floats& x) {
#if defined(__AVX__) && !defined(__AVX512F__)
  asm("" : "+x"(x));
#endif
}

inline Floats all(float x) { return x - Floats{}; }

// The sum of the lanes, in pairs.
inline float total(Floats x) {
#pragma GCC unroll 4
  for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) x[lane] += x[lane + half];
  return x[0];
}

// The second one, if either is NaN.
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// 1 / x to within two units in the last place. Dividing takes several times as long.
inline Floats inverse(Floats x) {
#ifdef __AVX512F__
  const Floats guess = _mm512_rcp14_ps(x);
  return guess * (2.f - x * guess);
#else
  return 1.f / x;
#endif
}

// The value at x of a polynomial, given by its coefficients from the highest power on.
template <typename... Others>
inline Floats polynomial(Floats x, float highest, Others... others) {
  Floats result = all(highest);
  ((result = result * x + others), ...);
  return result;
}

// The exponential, for x up to 80. Below -80 it is that of -80, since smaller results would be slow: denormal.
inline Floats exponential(Floats x) {
  const Floats shift = all(12582912.f);  // adding 1.5 * 2^23 rounds to a whole number, in the lowest bits of the sum
  const Floats power = maximum(x, all(-80.f)) * 1.44269504f, sum = power + shift, rest = power - (sum - shift);
  // Taylor series of 2^rest, rest between -0.5 and 0.5
  const Floats result = polynomial(rest, 1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f,
                                   6.9314718e-1f, 1.f);
  return (Floats)((Ints)result + ((Ints)sum << 23));
}

inline Floats sigmoid(Floats x) { return inverse(1.f + exponential(x < -80.f ? all(80.f) : -x)); }

// GELU, or its tanh approximation. The normal distribution is 1/2 plus an odd rational function, fitted by least
// squares that were reweighted until the largest error was smallest: 6e-9 up to |x| = 5.4, where 3e-8 are missing to 0
// and 1. With what float32 rounds, the result is off by up to 2.5e-7 |x|.
template <bool TANH>
inline Floats gelu(Floats x) {
  if (TANH) return x * sigmoid(2.f * 0.7978845608f * (x + 0.044715f * x * x * x));
  const Floats limited = x > 5.4f ? all(5.4f) : maximum(all(-5.4f), x), square = limited * limited;
  const Floats above = polynomial(square, 2.33868399e-8f, 6.35996886e-6f, 1.64318060e-4f, 4.65082915e-3f,
                                  3.33719012e-2f, 3.98942245e-1f);
  const Floats below = polynomial(square, 1.21659022e-6f, 7.23988755e-5f, 1.85896124e-3f, 2.83784949e-2f,
                                  2.50317040e-1f, 1.f);
  return x * (limited * above * inverse(below) + 0.5f);
}

// Where each group of lanes begins; the last one overlaps the one before.
inline int64_t first_of(int64_t group, int64_t channels) { return std::min(group * LANES, channels - LANES); }

inline int64_t groups_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

// Calls finish(column, sum) with the sums of a 3x3 depthwise convolution at each column of a row. The rows above and
// below are null outside of the map. `step` is the distance of two columns.
template <typename T, typename Finish>
inline void convolve_row(const T* above, const T* middle, const T* below, int64_t width, int64_t step,
                         const float* weight, int64_t channels, Floats bias, Finish finish) {
  Floats w[9];
  for (int i = 0; i < 9; ++i) w[i] = load(weight + i * channels);
  const Floats zero = {};
  Floats left[3] = {zero, zero, zero}, here[3], right[3];
  here[0] = above ? load(above) : zero;
  here[1] = load(middle);
  here[2] = below ? load(below) : zero;
  for (int64_t column = 0; column < width; ++column) {
    if (column + 1 < width) {
      const int64_t next = (column + 1) * step;
      right[0] = above ? load(above + next) : zero;
      right[1] = load(middle + next);
      right[2] = below ? load(below + next) : zero;
    } else {
      right[0] = right[1] = right[2] = zero;
    }
    Floats sum = bias, other = left[1] * w[3];  // two chains, so that one need not wait for the other
    sum += left[0] * w[0];
    other += here[1] * w[4];
    sum += here[0] * w[1];
    other += right[1] * w[5];
    sum += right[0] * w[2];
    other += left[2] * w[6];
    sum += here[2] * w[7];
    other += right[2] * w[8];
    finish(column, sum + other);
    for (int i = 0; i < 3; ++i) left[i] = here[i], here[i] = right[i];
  }
}

// The left factor of a product: `lines` times `pixels` rows of numbers. A row consists of SEGMENTS parts of `inner`
// numbers. Those of the first pixel of a line begin at `starts`, (lines, SEGMENTS), and those of the next ones `step`
// numbers further on each.
template <int SEGMENTS>
struct Rows {
  const float* const* starts;
  int64_t lines, pixels, step, inner;
};

template <int ROWS_AT_ONCE, int VECTORS, int SEGMENTS, typename Finish>
inline void product_tile(const float* const* starts, int64_t offset, int64_t step, int64_t inner, const float* packed,
                         const Floats* start, int64_t row, int64_t column, Finish finish) {
  Floats sums[ROWS_AT_ONCE][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS_AT_ONCE; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = start[v];
  for (int segment = 0; segment < SEGMENTS; ++segment) {
    const float* from = starts[segment] + offset;
    for (int64_t k = 0; k < inner; ++k, packed += VECTORS * LANES) {
      Floats b[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        b[v] = load(packed + v * LANES);
        keep_in_register(b[v]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < ROWS_AT_ONCE; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] += b[v] * from[r * step + k];
    }
  }
  for (int r = 0; r < ROWS_AT_ONCE; ++r)
    for (int v = 0; v < VECTORS; ++v) finish(row + r, column + v * LANES, sums[r][v]);
}

// Columns of a product that are computed together: `vectors` times LANES of them, from `column` on. The first `seen` of
// them are in the panel before, too.
struct Panel {
  int64_t column, vectors, seen;
};

// Calls use(panel) for panels of about equal width, the last of which begins early enough to end with the last column.
template <typename Use>
inline void for_panels(int64_t outputs, Use use) {
  const int64_t vectors = groups_of(outputs);
  const int64_t panels = vectors * LANES > outputs && vectors <= TILE_VECTORS ? vectors
                                                                              : (vectors + TILE_VECTORS - 1) / TILE_VECTORS;
  for (int64_t panel = 0, column = 0; panel < panels; ++panel) {
    const int64_t width = vectors * (panel + 1) / panels - vectors * panel / panels;
    const int64_t first = std::min(column, outputs - width * LANES);
    use(Panel{first, width, column - first});
    column += width * LANES;
  }
}

// Writes the panels of `weight`, (inner, outputs), one after the other, each (inner, vectors * LANES), in the order in
// which product() reads them.
void pack(const float* weight, int64_t inner, int64_t outputs, float* packed) {
  constexpr int64_t ROWS = 8;  // of a panel, which are written in one piece
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < inner; first += ROWS) {
    float* panels = packed;
    for_panels(outputs, [&](const Panel& panel) {
      const int64_t width = panel.vectors * LANES;
      for (int64_t k = first; k < std::min(first + ROWS, inner); ++k)
        std::copy_n(weight + k * outputs + panel.column, width, panels + k * width);
      panels += inner * width;
    });
  }
}

template <bool ADDS, int VECTORS, int SEGMENTS, typename Finish>
void product_panel(const Rows<SEGMENTS>& a, const float* packed, const float* bias, const Panel& panel, Finish finish) {
  Floats start[VECTORS];
  for (int v = 0; v < VECTORS; ++v) start[v] = bias ? load(bias + panel.column + v * LANES) : Floats{};
  Ints seen = {};
  for (int64_t lane = 0; lane < panel.seen; ++lane) seen[lane] = -1;
  const auto finish_new = [&](int64_t row, int64_t column, Floats sum) {
    finish(row, column, ADDS && column == panel.column ? (seen ? Floats{} : sum) : sum);
  };
  for (int64_t line = 0; line < a.lines; ++line) {
    const float* const* starts = a.starts + line * SEGMENTS;
    int64_t pixel = 0;
    const auto tiles = [&](auto rows, int64_t end) {
      constexpr int ROWS_AT_ONCE = decltype(rows)::value;
      for (; pixel + ROWS_AT_ONCE <= end; pixel += ROWS_AT_ONCE)
        product_tile<ROWS_AT_ONCE, VECTORS, SEGMENTS>(starts, pixel * a.step, a.step, a.inner, packed, start,
                                                      line * a.pixels + pixel, panel.column, finish_new);
    };
    // Tiles of one row are slow, since each sum waits for the one before. Where one or two would remain, a large tile
    // is split, too.
    const int64_t rest = a.pixels % TILE_ROWS, split = rest == 1 || rest == 2 ? TILE_ROWS : 0;
    tiles(std::integral_constant<int, TILE_ROWS>(), a.pixels - split);
    tiles(std::integral_constant<int, 4>(), a.pixels);
    tiles(std::integral_constant<int, 3>(), a.pixels);
    tiles(std::integral_constant<int, 1>(), a.pixels);
  }
}

// Calls finish(row, column, sum) with LANES sums at a time of the product of `a` and a weight, (inner, outputs), which
// is packed, plus the bias if there is one. With ADDS, columns that are computed twice come as 0 the second time.
template <bool ADDS, int SEGMENTS, typename Finish>
void product(const Rows<SEGMENTS>& a, const float* packed, const float* bias, int64_t outputs, Finish finish) {
  for_panels(outputs, [&](const Panel& panel) {
    if (panel.vectors == 3)
      product_panel<ADDS, TILE_VECTORS>(a, packed, bias, panel, finish);
    else if (panel.vectors == 2)
      product_panel<ADDS, 2>(a, packed, bias, panel, finish);
    else
      product_panel<ADDS, 1>(a, packed, bias, panel, finish);
    packed += SEGMENTS * a.inner * panel.vectors * LANES;
  });
}

// The same for `a` as a matrix, (rows, inner).
template <bool ADDS, typename Finish>
void product(const float* a, int64_t rows, int64_t inner, const float* packed, const float* bias, int64_t outputs,
             Finish finish) {
  product<ADDS>(Rows<1>{&a, 1, rows, inner, inner}, packed, bias, outputs, finish);
}

// A 3x3 convolution with stride 2, and ReLU if there is one. Its weights are (9 * C_in, C_out), where the channels of a
// pixel stand together, and packed.
struct Halving {
  const float *weight, *bias;
  int64_t inputs, outputs, relu;
};

// Rows of the output of such a convolution, over a map whose row y is written by fill(y, to), (width, C_in).
template <typename Fill>
class HalvedRows {
 public:
  HalvedRows(int64_t height, int64_t width, const Halving& conv, int64_t rows_at_once, Fill fill)
      : height_(height), width_(width), conv_(conv), fill_(fill), row_((width + 2) * conv.inputs),
        padded_((2 * rows_at_once + 1) * row_, 0.f) {}

  // Calls finish(row, column, sum) for the rows [y, y + rows), as `product` does. Rows must be asked for in turn.
  template <typename Finish>
  void compute(int64_t y, int64_t rows, Finish finish) {
    const int64_t first = 2 * y - 1;
    starts_.clear();
    for (int64_t i = 0; i <= 2 * rows; ++i) {
      float* to = padded_.data() + i * row_;
      if (i == 0 && filled_ > 0)
        std::copy_n(padded_.data() + (filled_ - 1) * row_, row_, to);  // the last row of the time before
      else if (first + i >= 0 && first + i < height_)
        fill_(first + i, to + conv_.inputs);  // the pixels before and after a row stay zero
      else
        std::fill_n(to, row_, 0.f);
    }
    filled_ = 2 * rows + 1;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < 3; ++i) starts_.push_back(padded_.data() + (2 * row + i) * row_);
    const Rows<3> pixels{starts_.data(), rows, (width_ + 1) / 2, 2 * conv_.inputs, 3 * conv_.inputs};
    product<false>(pixels, conv_.weight, conv_.bias, conv_.outputs,
                   [&](int64_t row, int64_t column, Floats sum) {
                     finish(row, column, conv_.relu ? maximum(Floats{}, sum) : sum);
                   });
  }

 private:
  int64_t height_, width_;
  const Halving& conv_;
  Fill fill_;
  int64_t row_, filled_ = 0;
  Numbers padded_;
  std::vector<const float*> starts_;
};

// A map of one image, (height, width, channels). Rows outside of it are null.
template <typename T>
struct Map {
  T* data;
  int64_t height, width, channels;
  T* row(int64_t y) const { return y < 0 || y >= height ? nullptr : data + y * width * channels; }
};

template <typename T>
inline const T* at(const T* row, int64_t c) {
  return row ? row + c : nullptr;
}

// Depthwise convolution and GELU of row y.
template <bool TANH, typename T, typename Out>
void depthwise_gelu_row(Map<const T> in, int64_t y, Out* out, const float* weight, const float* bias) {
  const T *above = in.row(y - 1), *middle = in.row(y), *below = in.row(y + 1);
  const int64_t channels = in.channels;
  for (int64_t group = 0; group < groups_of(channels); ++group) {
    const int64_t c = first_of(group, channels);
    convolve_row(at(above, c), middle + c, at(below, c), in.width, channels, weight + c, channels, load(bias + c),
                 [=](int64_t column, Floats sum) { store(out + column * channels + c, gelu<TANH>(sum)); });
  }
}

// Weights of a token mixer. Those of the depthwise convolutions are (9, C); those of query stand before those of key.
struct Mixer {
  const float *gate_weight, *gate_bias;  // (9, 2C), (2C)
  const float* gate_proj;                // (2, 2C), block diagonal
  const float* channel_weight;           // (2C, C)
  const float *dwc_weight, *dwc_bias;    // (9, C), (C)
  const float* proj_weight;              // (9, C)
};

// The spatial gates of row y, (2, width), and the sums of the gated query and key, which are added to `sums`, (2C).
template <typename T>
void gate_row(Map<const T> query_key, int64_t y, const Mixer& mixer, float* gates, Floats* scores, float* sums) {
  const T *above = query_key.row(y - 1), *middle = query_key.row(y), *below = query_key.row(y + 1);
  const int64_t step = query_key.channels, channels = step / 2, width = query_key.width;
  for (int64_t part = 0; part < 2; ++part) {
    std::fill_n(scores, width, Floats{});
    for (int64_t group = 0; group < groups_of(channels); ++group) {
      const int64_t first = first_of(group, channels), c = part * channels + first;
      Floats proj = load(mixer.gate_proj + part * step + c);
      for (int64_t lane = 0; lane < group * LANES - first; ++lane) proj[lane] = 0;  // counted already
      convolve_row(at(above, c), middle + c, at(below, c), width, step, mixer.gate_weight + c, step,
                   load(mixer.gate_bias + c),
                   [=](int64_t column, Floats sum) { scores[column] += maximum(Floats{}, sum) * proj; });
    }
    float* gate = gates + part * width;
    int64_t column = 0;
    for (; column < width; ++column) gate[column] = total(scores[column]);
    column = 0;
    for (; column + LANES <= width; column += LANES) store(gate + column, sigmoid(load(gate + column)));
    for (; column < width; ++column) gate[column] = sigmoid(all(gate[column]))[0];
    for (int64_t group = 0; group < groups_of(channels); ++group) {
      const int64_t first = first_of(group, channels), c = part * channels + first;
      Floats sum = {};
      for (column = 0; column < width; ++column) sum += load(middle + column * step + c) * gate[column];
      for (int64_t lane = group * LANES - first; lane < LANES; ++lane) sums[c + lane] += sum[lane];
    }
  }
}

// The factors of the channel gates, (2C), from the means of the gated query and key, (2C).
void channel_gates(const float* means, const Mixer& mixer, int64_t channels, float* factors) {
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < 2 * channels; ++c) {
    const float *from = means + c / channels * channels, *weight = mixer.channel_weight + c * channels;
    Floats sum = {};
    int64_t i = 0;
    for (; i + LANES <= channels; i += LANES) sum += load(weight + i) * load(from + i);
    float score = total(sum);
    for (; i < channels; ++i) score += weight[i] * from[i];
    factors[c] = sigmoid(all(score))[0];
  }
}

// The last two depthwise convolutions of a token mixer, row by row. Of each map, three rows are kept: row y in place
// y % 3.
template <typename T>
class MixedRows {
 public:
  MixedRows(Map<const T> query_key, Map<const T> value, const float* gates, const float* factors, const Mixer& mixer,
            int64_t begin)
      : query_key_(query_key), value_(value), gates_(gates), factors_(factors), mixer_(mixer),
        row_(value.width * value.channels), added_(3 * row_), mixed_(3 * row_),
        next_added_(std::max<int64_t>(begin - 2, 0)), next_mixed_(std::max<int64_t>(begin - 1, 0)) {}

  // Adds row y of the output to a row of the map. Rows must be asked for in turn, from `begin` on.
  void add_to(int64_t y, T* to) {
    const int64_t last = value_.height - 1, channels = value_.channels;
    for (; next_mixed_ <= std::min(y + 1, last); ++next_mixed_) {
      for (; next_added_ <= std::min(next_mixed_ + 1, last); ++next_added_) add(next_added_);
      convolve(next_mixed_);
    }
    for (int64_t group = 0; group < groups_of(channels); ++group) {
      const int64_t c = first_of(group, channels), seen = group * LANES - c;
      convolve_row(kept(mixed_, y - 1, c), kept(mixed_, y, c), kept(mixed_, y + 1, c), value_.width, channels,
                   mixer_.proj_weight + c, channels, Floats{}, [=](int64_t column, Floats sum) {
                     T* pixel = to + column * channels + c;
                     for (int64_t lane = 0; lane < seen; ++lane) sum[lane] = 0;  // added already
                     store(pixel, load(pixel) + sum);
                   });
    }
  }

 private:
  const float* kept(const Numbers& rows, int64_t y, int64_t c) const {
    return y < 0 || y >= value_.height ? nullptr : rows.data() + y % 3 * row_ + c;
  }

  void add(int64_t y) {
    const int64_t width = value_.width, channels = value_.channels;
    const T* from = query_key_.row(y);
    const float* gate = gates_ + y * 2 * width;
    float* to = added_.data() + y % 3 * row_;
    for (int64_t column = 0; column < width; ++column)
      for (int64_t group = 0; group < groups_of(channels); ++group) {
        const int64_t c = first_of(group, channels);
        const T* pixel = from + column * 2 * channels + c;
        const Floats query = load(pixel) * (load(factors_ + c) * gate[column]);
        const Floats key = load(pixel + channels) * (load(factors_ + channels + c) * gate[width + column]);
        store(to + column * channels + c, query + key);
      }
  }

  void convolve(int64_t y) {
    const int64_t channels = value_.channels;
    for (int64_t group = 0; group < groups_of(channels); ++group) {
      const int64_t c = first_of(group, channels);
      const T* from = value_.row(y) + c;
      float* to = mixed_.data() + y % 3 * row_ + c;
      convolve_row(kept(added_, y - 1, c), kept(added_, y, c), kept(added_, y + 1, c), value_.width, channels,
                   mixer_.dwc_weight + c, channels, load(mixer_.dwc_bias + c), [=](int64_t column, Floats sum) {
                     store(to + column * channels, sum * load(from + column * channels));
                   });
    }
  }

  Map<const T> query_key_, value_;
  const float *gates_, *factors_;
  const Mixer& mixer_;
  int64_t row_;
  Numbers added_, mixed_;
  int64_t next_added_, next_mixed_;
};

// Splits the rows of each image into as many bands as there are threads.
struct Bands {
  Bands(int64_t images, int64_t height)
      : images(images), height(height), each(std::min<int64_t>(omp_get_max_threads(), height)) {}
  int64_t images, height, each;
  int64_t count() const { return images * each; }
  int64_t image(int64_t band) const { return band / each; }
  int64_t begin(int64_t band) const { return height * (band % each) / each; }
  int64_t end(int64_t band) const { return height * (band % each + 1) / each; }
};

// The gates of a token mixer. Those of each row must be computed once, and then the factors of the channels.
template <typename T>
class Gates {
 public:
  Gates(const T* query_key, const Mixer& mixer, const Bands& bands, int64_t width, int64_t channels)
      : mixer(mixer), bands(bands), width(width), channels(channels), query_key_(query_key),
        gates_(2 * bands.images * bands.height * width), scores_(bands.count() * width),
        sums_(bands.count() * 2 * channels, 0.f), factors_(bands.images * 2 * channels) {}

  const Mixer& mixer;
  const Bands& bands;
  const int64_t width, channels;

  Map<const T> query_key(int64_t image) const {
    return {query_key_ + image * bands.height * width * 2 * channels, bands.height, width, 2 * channels};
  }
  const float* rows(int64_t image) const { return gates_.data() + image * 2 * bands.height * width; }
  const float* factors(int64_t image) const { return factors_.data() + image * 2 * channels; }

  void compute_row(int64_t band, int64_t y) {
    const int64_t image = bands.image(band);
    gate_row(query_key(image), y, mixer, gates_.data() + (image * bands.height + y) * 2 * width,
             scores_.data() + band * width, sums_.data() + band * 2 * channels);
  }

  void compute_factors() {
    Numbers means(2 * channels);
    for (int64_t image = 0; image < bands.images; ++image) {
      std::fill(means.begin(), means.end(), 0.f);
      for (int64_t band = image * bands.each; band < (image + 1) * bands.each; ++band)
        for (int64_t c = 0; c < 2 * channels; ++c)
          means[c] += sums_[band * 2 * channels + c] / (bands.height * width);
      channel_gates(means.data(), mixer, channels, factors_.data() + image * 2 * channels);
    }
  }

 private:
  const T* query_key_;
  Numbers gates_;
  std::vector<Floats> scores_;  // of the row that each band computes
  Numbers sums_, factors_;
};

// Applies the token mixer. finish(image, y, rows) may read and change the rows [y, y + rows) of x.
template <typename T, typename Finish>
void mix(T* x, const T* value, const Gates<T>& gates, int64_t rows_at_once, Finish finish) {
  const Bands& bands = gates.bands;
  const int64_t height = bands.height, width = gates.width, channels = gates.channels;
#pragma omp parallel for schedule(static)
  for (int64_t band = 0; band < bands.count(); ++band) {
    const int64_t image = bands.image(band), begin = bands.begin(band), end = bands.end(band);
    Finish finish_band = finish;
    MixedRows<T> mixed(gates.query_key(image),
                       Map<const T>{value + image * height * width * channels, height, width, channels},
                       gates.rows(image), gates.factors(image), gates.mixer, begin);
    for (int64_t y = begin; y < end; y += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, end - y);
      T* to = x + (image * height + y) * width * channels;
      for (int64_t i = 0; i < rows; ++i) mixed.add_to(y + i, to + i * width * channels);
      finish_band(image, y, rows);
    }
  }
}

// Weights of a block: those of 1x1 convolutions (C_in, C_out), packed, those of depthwise ones (9, C).
struct Block {
  const float *local_weight, *local_bias;
  const float *depthwise_weight, *depthwise_bias;
  const float* local_proj;
  const float *query_key_weight, *query_key_bias;
  const float *value_weight, *value_bias;
  Mixer mixer;
  const float *fc1_weight, *fc1_bias;
  const float *fc2_weight, *fc2_bias;  // the last one may be null
};

// Pixels that pass several steps together, if a row of the image is not longer. Their channels stay in the caches.
inline int64_t pixels_at_once(int64_t channels) { return channels <= 128 ? 256 : 128; }

template <bool TANH>
void block(float* x, float* local, float* query_key, float* value, const Block& weights, int64_t images,
           int64_t height, int64_t width, int64_t channels) {
  const int64_t pixels = height * width, hidden = 4 * channels;
  const int64_t rows_at_once = std::max<int64_t>(pixels_at_once(channels) / width, 1);

  const Bands bands(images, height);
  Gates<float> gates(query_key, weights.mixer, bands, width, channels);
  const auto compute_local = [=](int64_t y, int64_t rows) {  // y counts the rows of all images
    float* to = local + y * width * channels;
    product<false>(x + y * width * channels, rows * width, channels, weights.local_weight, weights.local_bias,
                   channels, [=](int64_t row, int64_t column, Floats sum) { store(to + row * channels + column, sum); });
  };

  // Before x changes, the rows that the neighboring bands need; all rows where there are few, which fill whole tiles
  // together. The others follow in turn, while x is in the caches.
  const bool in_turn = height >= 32 * bands.each;
#pragma omp parallel for schedule(static)
  for (int64_t band = 0; band < bands.count(); ++band) {
    const int64_t first = bands.image(band) * height + bands.begin(band), rows = bands.end(band) - bands.begin(band);
    if (!in_turn) {
      for (int64_t y = 0; y < rows; y += rows_at_once)
        compute_local(first + y, std::min(rows_at_once, rows - y));
      continue;
    }
    const int64_t row_size = width * channels;
    const float* borders[2] = {x + first * row_size, x + (first + rows - 1) * row_size};
    float* to = local + first * row_size;
    product<false>(Rows<1>{borders, 2, width, channels, channels}, weights.local_weight, weights.local_bias, channels,
                   [=](int64_t row, int64_t column, Floats sum) {
                     store(to + (row < width ? row : row + (rows - 2) * width) * channels + column, sum);
                   });
  }

#pragma omp parallel for schedule(static)
  for (int64_t band = 0; band < bands.count(); ++band) {
    const int64_t image = bands.image(band), begin = bands.begin(band), end = bands.end(band);
    const Map<const float> map{local + image * pixels * channels, height, width, channels};
    Numbers activated(rows_at_once * width * channels);
    for (int64_t y = begin, next_local = in_turn ? begin + 1 : end, next_gate = begin + 1; y < end; y += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, end - y), first = (image * height + y) * width;
      const int64_t missing = std::min(y + rows + 1, end - 1) - next_local;
      if (missing > 0) compute_local(image * height + next_local, missing), next_local += missing;
      for (int64_t i = 0; i < rows; ++i)
        depthwise_gelu_row<TANH>(map, y + i, activated.data() + i * width * channels, weights.depthwise_weight,
                                 weights.depthwise_bias);
      float* from = x + first * channels;
      product<true>(activated.data(), rows * width, channels, weights.local_proj, nullptr, channels,
                    [=](int64_t row, int64_t column, Floats sum) {
                      float* to = from + row * channels + column;
                      store(to, load(to) + sum);
                    });
      float* to = query_key + first * 2 * channels;
      product<false>(from, rows * width, channels, weights.query_key_weight, weights.query_key_bias, 2 * channels,
                     [=](int64_t row, int64_t column, Floats sum) {
                       store(to + row * 2 * channels + column, sum);
                     });
      to = value + first * channels;
      product<false>(from, rows * width, channels, weights.value_weight, weights.value_bias, channels,
                     [=](int64_t row, int64_t column, Floats sum) { store(to + row * channels + column, sum); });
      for (; next_gate + 1 < y + rows; ++next_gate) gates.compute_row(band, next_gate);
    }
  }
#pragma omp parallel for schedule(static)
  for (int64_t band = 0; band < bands.count(); ++band) {  // the rows with a neighbor in another band
    gates.compute_row(band, bands.begin(band));
    if (bands.end(band) - 1 > bands.begin(band)) gates.compute_row(band, bands.end(band) - 1);
  }
  gates.compute_factors();

  mix(x, value, gates, rows_at_once,
      [=, expanded = Numbers()](int64_t image, int64_t y, int64_t rows) mutable {
        float* from = x + (image * height + y) * width * channels;
        expanded.resize(rows * width * hidden);
        float* between = expanded.data();
        product<false>(from, rows * width, channels, weights.fc1_weight, weights.fc1_bias, hidden,
                       [=](int64_t row, int64_t column, Floats sum) {
                         store(between + row * hidden + column, gelu<TANH>(sum));
                       });
        product<true>(between, rows * width, hidden, weights.fc2_weight, weights.fc2_bias, channels,
                      [=](int64_t row, int64_t column, Floats sum) {
                        float* to = from + row * channels + column;
                        store(to, load(to) + sum);
                      });
      });
}

// Applies one such convolution, or two in a row: the stem, whose map in between never leaves the caches. The input,
// (N, C, H, W), has the given strides, and the output is (N, H', W', C').
void halve(const float* x, const int64_t* strides, float* out, const Halving* convs, int64_t count, int64_t images,
           int64_t height, int64_t width) {
  const Halving &first = convs[0], &last = convs[count - 1];
  const int64_t half_height = (height + 1) / 2, half_width = (width + 1) / 2;
  const int64_t out_height = count == 2 ? (half_height + 1) / 2 : half_height;
  const int64_t out_width = count == 2 ? (half_width + 1) / 2 : half_width;
  const int64_t rows_at_once = std::max<int64_t>(pixels_at_once(last.outputs) / out_width, 2);
  const Bands bands(images, out_height);
#pragma omp parallel for schedule(static)
  for (int64_t band = 0; band < bands.count(); ++band) {
    const float* image = x + bands.image(band) * strides[0];
    const auto input = [=](int64_t y, float* row) {
      const float* from = image + y * strides[2];
      for (int64_t c = 0; c < first.inputs; ++c)
        for (int64_t column = 0; column < width; ++column)
          row[column * first.inputs + c] = from[c * strides[1] + column * strides[3]];
    };
    const auto pixels = [=](int64_t y, float* row) { std::copy_n(image + y * strides[2], width * first.inputs, row); };
    const auto write = [&](auto&& rows) {
      float* to = out + bands.image(band) * out_height * out_width * last.outputs;
      for (int64_t y = bands.begin(band); y < bands.end(band); y += rows_at_once)
        rows.compute(y, std::min(rows_at_once, bands.end(band) - y), [=](int64_t row, int64_t column, Floats sum) {
          store(to + (y * out_width + row) * last.outputs + column, sum);
        });
    };
    const auto apply = [&](auto fill) {
      if (count == 1) return write(HalvedRows<decltype(fill)>(height, width, first, rows_at_once, fill));
      HalvedRows<decltype(fill)> halved(height, width, first, 1, fill);
      const auto between = [&](int64_t y, float* row) {
        halved.compute(y, 1, [=](int64_t pixel, int64_t column, Floats sum) {
          store(row + pixel * first.outputs + column, sum);
        });
      };
      write(HalvedRows<decltype(between)>(half_height, half_width, last, rows_at_once, between));
    };
    strides[1] == 1 && strides[3] == first.inputs ? apply(pixels) : apply(input);
  }
}

}  // namespace

extern "C" {

int64_t packed_size(int64_t inner, int64_t outputs) { return inner * groups_of(outputs) * LANES; }

void pack_float32(const float* weight, int64_t inner, int64_t outputs, float* packed) {
  pack(weight, inner, outputs, packed);
}

void halve_float32(const float* x, const int64_t* strides, float* out, const Halving* convs, int64_t count,
                   int64_t images, int64_t height, int64_t width) {
  halve(x, strides, out, convs, count, images, height, width);
}

void block_float32(float* x, float* local, float* query_key, float* value, const Block* weights, int64_t images,
                   int64_t height, int64_t width, int64_t channels, int64_t tanh) {
  (tanh ? block<true> : block<false>)(x, local, query_key, value, *weights, images, height, width, channels);
}

void depthwise_gelu_bfloat16(const BFloat16* in, BFloat16* out, const float* weight, const float* bias, int64_t images,
                             int64_t height, int64_t width, int64_t channels, int64_t tanh) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < images * height; ++row) {
    const Map<const BFloat16> map{in + row / height * height * width * channels, height, width, channels};
    (tanh ? depthwise_gelu_row<true, BFloat16, BFloat16> : depthwise_gelu_row<false, BFloat16, BFloat16>)(
        map, row % height, out + row * width * channels, weight, bias);
  }
}

void mix_bfloat16(BFloat16* x, const BFloat16* query_key, const BFloat16* value, const Mixer* mixer, int64_t images,
                  int64_t height, int64_t width, int64_t channels) {
  const Bands bands(images, height);
  Gates<BFloat16> gates(query_key, *mixer, bands, width, channels);
#pragma omp parallel for schedule(static)
  for (int64_t band = 0; band < bands.count(); ++band)
    for (int64_t y = bands.begin(band); y < bands.end(band); ++y) gates.compute_row(band, y);
  gates.compute_factors();
  mix(x, value, gates, 1, [](int64_t, int64_t, int64_t) {});
}

}  // extern "C"
