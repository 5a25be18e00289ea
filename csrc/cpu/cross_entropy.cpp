// Cross-entropy of logits of the labels' size: loss and gradient in one read of the logits.
//
// Lower bound: read the logits' bytes and write the gradient's once each, and one exponential per logit. A tile of
// pixels with all its classes fits into the L1 or L2 cache. So of the three sweeps that softmax needs, only the first
// and the last touch memory:
//   1. copy the tile, as float, to scratch memory; maximum over the classes
//   2. exponentials in place and their sum, then the loss and the coefficients of the gradient
//   3. gradient = exponential * coefficient, written to memory
#include "../kernels.h"
#include "decode.h"
#include "region.h"
#include "transpose.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {
namespace {

// Vectors of pixels per tile. Sums and maxima stay in registers: AVX-512 has 32, its predecessors 16.
#if defined(__AVX512F__)
constexpr int kGroup = 8;
#else
constexpr int kGroup = 4;
#endif
constexpr int64_t kTile = kGroup * kLanes;

// Neighbouring pixels of one row.
struct Tile {
  int64_t input, grad;  // offsets of class 0 of the first pixel
  int64_t label;        // index of the first pixel
  int64_t pixels;       // at most kTile
};

Tile locate(const PixelRows& rows, int64_t index) {
  const int64_t tiles_per_row = (rows.length + kTile - 1) / kTile;
  int64_t row = index / tiles_per_row;
  const int64_t x = index % tiles_per_row * kTile;
  Tile tile{x * rows.stride_x, x * rows.grad_stride_x, row * rows.length + x, smaller(kTile, rows.length - x)};
  for (int d = rows.outer - 1; d >= 0; --d) {
    const int64_t at = row % rows.size[d];
    row /= rows.size[d];
    tile.input += at * rows.stride[d];
    tile.grad += at * rows.grad_stride[d];
  }
  return tile;
}

// Calls visit(pixel, class) for squares of kLanes pixels and kLanes classes, which cover all classes and all whole
// vectors of pixels. The last square may overlap the one before, so that no class is left over. Returns the number of
// pixels covered.
template <class Visit>
int64_t each_square(int64_t classes, int64_t pixels, const Visit& visit) {
  if (classes < kLanes) return 0;
  int64_t x = 0;
  for (; x + kLanes <= pixels; x += kLanes) {
    for (int64_t c = 0; c < classes; c += kLanes) visit(x, smaller(c, classes - kLanes));
  }
  return x;
}

// Stage 1 for any strides and any number of pixels: copies logits, with the offsets added, to scratch (classes, kTile).
// Missing pixels become finite.
template <class T>
void read_strided(const T* input, int64_t classes, int64_t stride_c, int64_t stride_x, int64_t pixels,
                  const float* offset, float* scratch) {
  int64_t first = 0;
  if (stride_c == 1) {
    first = each_square(classes, pixels, [&](int64_t x, int64_t c) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(input + (x + i) * stride_x + c);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(scratch + (c + i) * kTile + x, square[i] + offset[c + i]);
    });
  }
  T buffer[kLanes] = {};
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t x = first; x < kTile; x += kLanes) {
      for (int64_t i = x; i < smaller(x + kLanes, pixels); ++i) buffer[i - x] = input[c * stride_c + i * stride_x];
      store(scratch + c * kTile + x, load(buffer) + offset[c]);
    }
  }
}

// Stage 3 for any strides and any number of pixels: copies the gradient from scratch (classes, kTile).
template <class T>
void write_strided(T* grad, int64_t classes, int64_t stride_c, int64_t stride_x, int64_t pixels, const float* scratch) {
  int64_t first = 0;
  if (stride_c == 1) {
    first = each_square(classes, pixels, [&](int64_t x, int64_t c) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(scratch + (c + i) * kTile + x);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(grad + (x + i) * stride_x + c, square[i]);
    });
  }
  T buffer[kLanes];
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t x = first; x < pixels; x += kLanes) {
      store(buffer, load(scratch + c * kTile + x));
      for (int64_t i = x; i < smaller(x + kLanes, pixels); ++i) grad[c * stride_c + i * stride_x] = buffer[i - x];
    }
  }
}

// Stores a vector, with a non-temporal store if `streaming`; `to` is then aligned to the vector.
template <class T>
CAWA_FAST_INLINE void put(T* to, Floats v, bool streaming) {
  if (streaming) {
    T narrow[kLanes];
    store(narrow, v);
    stream(&to->bits, load_as<Shorts>(&narrow[0].bits));
  } else {
    store(to, v);
  }
}

CAWA_FAST_INLINE void put(float* to, Floats v, bool streaming) {
  if (streaming) {
    stream(to, v);
  } else {
    store(to, v);
  }
}

template <class T, bool kSmoothed, Pass kPass>
void run_tile(const CrossEntropy& p, const Tile& tile, int64_t index, const Tile& next, float* scratch,
              const RegionSums& sums) {
  constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kRegionGradient;
  const PixelRows& rows = p.pixels;
  const Loss& loss = p.loss;
  const int64_t classes = p.classes;
  const T* input = static_cast<const T*>(p.input) + tile.input;
  T* grad = static_cast<T*>(p.grad_input) + tile.grad;
  const bool whole = tile.pixels == kTile;

  uint16_t label[kTile];
  decode(p.labels, tile.label, tile.pixels, label);
  for (int64_t i = tile.pixels; i < kTile; ++i) label[i] = kInvalid;
  Pixels pixels[kGroup];
  bool any = false;
  for (int g = 0; g < kGroup; ++g)
    any |= look_up(loss, __builtin_convertvector(load_as<Shorts>(label + g * kLanes), Ints), pixels[g]);

  // The logits of a tile without valid labels are not read.
  if (!any) {
    if (loss.partial_loss) loss.partial_loss[index] = 0;
    if (loss.pixel_loss) std::memset(loss.pixel_loss + tile.label, 0, tile.pixels * sizeof(float));
    if (kGrad) {
      for (int64_t c = 0; c < classes; ++c) {
        for (int64_t i = 0; i < tile.pixels; ++i) grad[c * rows.grad_stride_c + i * rows.grad_stride_x] = T{};
      }
    }
    return;
  }

  // Stage 1: logits and offsets to scratch memory, and their maximum.
  Floats top[kGroup];
  for (int g = 0; g < kGroup; ++g) top[g] = broadcast(-kInfinity);
  if (whole && rows.stride_x == 1) {
    for (int64_t c = 0; c < classes; ++c) {
      for (int g = 0; g < kGroup; ++g) {
        const Floats z = load(input + c * rows.stride_c + g * kLanes) + loss.offset[c];
        store(scratch + c * kTile + g * kLanes, z);
        top[g] = maximum(z, top[g]);
      }
    }
  } else {
    read_strided(input, classes, rows.stride_c, rows.stride_x, tile.pixels, loss.offset, scratch);
    for (int64_t c = 0; c < classes; ++c) {
      for (int g = 0; g < kGroup; ++g) top[g] = maximum(load(scratch + c * kTile + g * kLanes), top[g]);
    }
  }

  // Stage 2: exponentials, their sums, and the loss.
  float at_label[kTile];
  for (int64_t i = 0; i < kTile; ++i) at_label[i] = scratch[pixels[i / kLanes].label[i % kLanes] * kTile + i];
  Floats sum[kGroup] = {}, weighted[kGroup] = {};
  const T* ahead = static_cast<const T*>(p.input) + next.input;
  for (int64_t c = 0; c < classes; ++c) {
    // Prefetch the next tile's pixels into the L2 cache while this tile computes exponentials. The hardware prefetcher
    // does not follow as many streams as there are classes. The L1 cache is left to this tile. At 150 classes, on two
    // threads of a Zen 4: 29 ms with prefetches to L1, 22.5 ms to L2; copying the logits takes 20.6 ms.
    if (rows.stride_x == 1) {
      for (int64_t i = 0; i < kTile; i += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(ahead + c * rows.stride_c + i, 0, 2);
    }
    for (int g = 0; g < kGroup; ++g) {
      float* at = scratch + c * kTile + g * kLanes;
      const Floats shifted = load(at) - top[g];
      const Floats e = exp2<true>(shifted * kLog2E);
      if (kSmoothed) weighted[g] += loss.weight[c] * shifted;
      sum[g] += e;
      if (kPass != Pass::kLoss) store(at, e);
    }
  }
  Doubles total = {};
  Floats coefficient[kGroup], smooth[kGroup];
  for (int g = 0; g < kGroup; ++g) {
    Floats upstream = common_grad(loss);
    if (loss.grad_per_pixel) {
      float grads[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        grads[lane] = loss.grad[tile.label + smaller(g * kLanes + lane, tile.pixels - 1)];
      }
      upstream = load(grads);
    }
    const Floats log_sum = log_of_positive(sum[g]);
    const Terms terms = pixel_terms(loss, pixels[g], sum[g], log_sum, (top[g] - load(at_label + g * kLanes)) + log_sum,
                                    weighted[g], upstream);
    coefficient[g] = kPass == Pass::kRegionGradient ? broadcast(1.0f) : terms.coefficient;
    smooth[g] = terms.smooth;
    total += __builtin_convertvector(terms.loss * pixels[g].factor, Doubles);
    if (loss.pixel_loss) {
      for (int64_t i = g * kLanes; i < smaller((g + 1) * kLanes, tile.pixels); ++i) {
        loss.pixel_loss[tile.label + i] = terms.loss[i - g * kLanes];
      }
    }
    float* e = scratch + g * kLanes;
    if (kPass == Pass::kRegionSums) add_sums(p.region, sums, pixels[g], e, kTile, sum[g]);
    if (kPass == Pass::kRegionGradient) {
      to_gradient(p.region, RegionGradient(p.region, 0), pixels[g], terms, e, kTile, sum[g]);
    }
    if (kPass == Pass::kGradient) {
      float label_term[kLanes];
      store(label_term, terms.label_term);
      for (int lane = 0; lane < kLanes; ++lane) {
        e[pixels[g].label[lane] * kTile + lane] -= label_term[lane];
      }
    }
  }
  if (loss.partial_loss) loss.partial_loss[index] = sum_of_lanes(total);
  if (!kGrad) return;

  // Stage 3: the gradient. Invalid pixels are masked, not multiplied by 0: 0 * NaN is NaN.
  const bool direct = whole && rows.grad_stride_x == 1;
  constexpr size_t kBytes = kLanes * sizeof(T);
  const bool aligned = reinterpret_cast<uintptr_t>(grad) % kBytes == 0 && rows.grad_stride_c * sizeof(T) % kBytes == 0;
  for (int64_t c = 0; c < classes; ++c) {
    for (int g = 0; g < kGroup; ++g) {
      float* at = scratch + c * kTile + g * kLanes;
      Floats value = load(at) * coefficient[g];
      if (kSmoothed) value -= loss.weight[c] * smooth[g];
      value = bit_cast<Floats>(bit_cast<Ints>(value) & pixels[g].valid);
      if (direct) {
        put(grad + c * rows.grad_stride_c + g * kLanes, value, p.stream && aligned);
      } else {
        store(at, value);
      }
    }
  }
  if (!direct) write_strided(grad, classes, rows.grad_stride_c, rows.grad_stride_x, tile.pixels, scratch);
}

template <class T>
void run_items(const CrossEntropy& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t tiles = p.pixels.rows * ((p.pixels.length + kTile - 1) / kTile);
  const RegionSums sums{scratch + p.classes * kTile, scratch + p.classes * (kTile + kLanes)};
  Tile tile = locate(p.pixels, begin * p.tiles_per_item);
  for (int64_t item = begin; item < end; ++item) {
    if (p.pass == Pass::kRegionSums) clear_sums(p.region, sums);
    const int64_t last = smaller((item + 1) * p.tiles_per_item, tiles);
    for (int64_t index = item * p.tiles_per_item; index < last; ++index) {
      const Tile next = locate(p.pixels, smaller(index + 1, tiles - 1));
      with_pass(p.pass, p.loss.smooth > 0, [&]<bool kSmoothed, Pass kPass>() {
        run_tile<T, kSmoothed, kPass>(p, tile, index, next, scratch, sums);
      });
      tile = next;
    }
    if (p.pass == Pass::kRegionSums) write_sums(p.region, sums, p.region.partial + item * 2 * p.classes);
  }
  if (p.stream) finish_streaming();
}

}  // namespace

int64_t cross_entropy_tile() { return kTile; }

int64_t cross_entropy_scratch(int64_t classes) { return classes * (kTile + 2 * kLanes); }

void cross_entropy(const CrossEntropy& p, int64_t begin, int64_t end, float* scratch) {
  switch (p.type) {
    case Float::kFloat32:
      return run_items<float>(p, begin, end, scratch);
    case Float::kBFloat16:
      return run_items<BFloat16>(p, begin, end, scratch);
    case Float::kFloat16:
      return run_items<Half>(p, begin, end, scratch);
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
