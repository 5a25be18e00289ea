// Resize and cross-entropy of one vector of patches with four exponentials per patch and class. A patch is a part of a
// cell, of at most kSide x kSide pixels; a lane holds a patch.
//
// In a cell between the inputs a, b (above) and c, d (below) a logit is bilinear,
//
//     z(u, v) = a + u dx + v dy + u v dxy,   dx = b - a, dy = c - a, dxy = (d - c) - (b - a)
//
// Along a row of pixels u grows by a constant step, so exp z is a geometric sequence. The same holds down a column, and
// the ratio of a row's sequence is itself geometric from row to row. So four exponentials serve all pixels: that of the
// first pixel, the ratios `along` a row and `down` a column, and `twist`, by which `along` changes from row to row.
// Sequences are at most four long, so that rounding errors stay at a few units in the last place.
//
// Exponentials are those of z - reference, with the cell's largest corner of all classes as the reference. No pixel is
// above it, so that nothing overflows. A cell in which a class changes by more than kSpan is steep, and so is the whole
// vector: there the largest logit of a pixel could be so far below the reference that its exponential vanishes.
//
// Cost per class and patch of 16 pixels, as GCC 12 compiles it for AVX-512: 66 vector instructions for the sequences,
// 33 for the sums, and 82 for the gradient, altogether 11 per pixel. At 2x150x128x128 to 512x512 a thread takes 20 ms,
// with one exponential per pixel 41 ms (Intel Xeon).
#pragma once

#include "resized_cells.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

constexpr int64_t kLeastRatio = 4;  // output pixels per input; with fewer, patches are too small to gain anything
constexpr float kSpan = 33.0f;      // 48 powers of two
// In powers of two: a class whose first exponential is smaller gets 0. It stays below 2^-73 in all of the patch, where
// the exponential of the largest logit is at least 2^-48.
constexpr float kVanished = -121.0f;
constexpr float kLeastProbability = 1e-30f;  // below it, a label's loss is computed from its logit

// A vector of patches: rows x phases pixels. u of phase k and v of row r are u + k * du and v + r * dv.
struct Patch {
  int rows, phases;
  Floats u, du;
  float v, dv;
};

// Values of one class. `first` is the exponential of the first pixel.
struct Sequence {
  Floats first, along, down, twist;
};

CAWA_FAST_INLINE Sequence load_sequence(const float* from) {
  return {load(from), load(from + kLanes), load(from + 2 * kLanes), load(from + 3 * kLanes)};
}

// sum_c weight[c] z_c at a pixel, relative to the reference, is at + u * dx + v * dy + u * v * dxy.
struct WeightedLogits {
  Floats at, dx, dy, dxy;
};

// Stage 1: the sequences of all classes. Returns whether any lane is steep; then the rest is of no use.
template <bool kSmoothed>
bool compute_sequences(const Loss& loss, const Place& place, int64_t classes, const Patch& patch, Floats reference,
                       float* out, WeightedLogits* weighted) {
  const Floats along_step = patch.du * kLog2E, down_step = broadcast(patch.dv * kLog2E);
  const Floats twist_step = along_step * patch.dv, v = broadcast(patch.v);
  const int64_t right = place.right;
  Floats change = {};
  for (int64_t c = 0; c < classes; ++c) {
    const float* low = place.low + c * place.class_stride;
    const float* high = place.high + c * place.class_stride;
    __builtin_prefetch(place.next_input.at + c * place.next_input.step, 0, 2);
    const Floats upper_left = load(low), dx = load(low + right) - upper_left, lower_left = load(high);
    const Floats dy = lower_left - upper_left, dxy = (load(high + right) - lower_left) - dx;
    change = maximum(change, (absolute(dx) + absolute(dy)) + absolute(dxy));
    const Floats slope_x = v * dxy + dx, slope_y = patch.u * dxy + dy, difference = v * slope_y + patch.u * dx;
    // Only differences are rounded. Those to the reference are small where the probability is not.
    const Floats relative = upper_left - reference, power = (relative + difference) * kLog2E;
    float* to = out + c * kSequence * kLanes;
    store(to, power < kVanished ? Floats{} : exp2<false>(power));
    store(to + kLanes, exp2<false>(slope_x * along_step));
    store(to + 2 * kLanes, exp2<false>(slope_y * down_step));
    store(to + 3 * kLanes, exp2<false>(dxy * twist_step));
    if (kSmoothed) {
      weighted->at += loss.weight[c] * relative;
      weighted->dx += loss.weight[c] * dx;
      weighted->dy += loss.weight[c] * dy;
      weighted->dxy += loss.weight[c] * dxy;
    }
  }
  return bits(change > kSpan) != 0;
}

// Stage 2: the sums of the exponentials of all pixels, and the exponentials of their labels. A label's exponential has
// the same bits in both.
template <int kRows, int kPhases>
void add_exponentials(const CellScratch& s) {
  const PatchMemory& m = s.patch;
  Floats sum[kRows][kPhases] = {};
  for (int64_t c = 0; c < s.classes; ++c) {
    Sequence e = load_sequence(s.sequences + c * kSequence * kLanes);
    if (m.present[c]) {
      for (int r = 0; r < kRows; ++r) {
        Floats value = e.first;
        for (int k = 0; k < kPhases; ++k) {
          sum[r][k] += value;
          const int64_t at = (r * kPhases + k) * kLanes;
          store(m.at_label + at, load(m.label + at) == static_cast<int32_t>(c) ? value : load(m.at_label + at));
          value *= e.along;
        }
        e.first *= e.down;
        e.along *= e.twist;
      }
      continue;
    }
    for (int r = 0; r < kRows; ++r) {
      // Powers of the ratio keep the chain of multiplications short.
      const Floats squared = e.along * e.along;
      sum[r][0] += e.first;
      if (kPhases > 1) sum[r][1] += e.first * e.along;
      const Floats third = e.first * squared;
      if (kPhases > 2) sum[r][2] += third;
      if (kPhases > 3) sum[r][3] += third * e.along;
      e.first *= e.down;
      e.along *= e.twist;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kPhases; ++k) store(m.sum + (r * kPhases + k) * kLanes, sum[r][k]);
  }
}

// negative_log, minus the logarithm of the label's probability, computed from the logits in the lanes of `tiny`.
Floats negative_log_from_logits(const Place& place, const int32_t* label, Floats u, float v, Floats reference,
                                Floats log_sum, Ints tiny, Floats negative_log) {
  const int64_t right = place.right;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!tiny[lane]) continue;
    const float* low = place.low + label[lane] * place.class_stride + lane;
    const float* high = place.high + label[lane] * place.class_stride + lane;
    const float above = low[0] + u[lane] * (low[right] - low[0]), below = high[0] + u[lane] * (high[right] - high[0]);
    negative_log[lane] = (reference[lane] - (above + v * (below - above))) + log_sum[lane];
  }
  return negative_log;
}

// Adds the gradient of class c to the four inputs, from the sums of g, v g, u g and u v g of resized_cells.h.
template <bool kSmoothed>
CAWA_FAST_INLINE void write_gradient(const Loss& loss, const CellScratch& s, const Place& place, int64_t c, Floats g,
                                     Floats vg, Floats ug, Floats uvg, const Floats* smooth, int64_t slot,
                                     float* const* low, float* const* high) {
  if (kSmoothed) {
    g -= loss.weight[c] * smooth[0];
    vg -= loss.weight[c] * smooth[1];
    ug -= loss.weight[c] * smooth[2];
    uvg -= loss.weight[c] * smooth[3];
  }
  __builtin_prefetch(place.gradient.at + c * place.gradient.step, 1, 2);
  const int64_t at = c * s.width + slot;
  const Floats upper_right = ug - uvg;
  store(low[0] + at, load(low[0] + at) + ((g - vg) - upper_right));
  store(low[1] + at, load(low[1] + at) + upper_right);
  store(high[0] + at, load(high[0] + at) + (vg - uvg));
  store(high[1] + at, load(high[1] + at) + uvg);
}

// Stage 4: adds the gradient of all classes to low[0], low[1], high[0] and high[1], as add_gradient in resized_cells.h.
// The sum over a row of pixels is first * (f_0 + along * (f_1 + along * (f_2 + ...))), with the pixels' factors f.
template <int kRows, int kPhases, bool kSmoothed>
void add_gradient(const Loss& loss, const CellScratch& s, const Place& place, const Patch& patch, const Floats* smooth,
                  int64_t slot, float* const* low, float* const* high) {
  const PatchMemory& m = s.patch;
  for (int64_t c = 0; c < s.classes; ++c) {
    Sequence e = load_sequence(s.sequences + c * kSequence * kLanes);
    Floats g = {}, vg = {}, ug = {}, uvg = {};
    if (m.present[c]) {
      for (int r = 0; r < kRows; ++r) {
        Floats value = e.first, row_g = {}, row_ug = {};
        for (int k = 0; k < kPhases; ++k) {
          const int64_t at = (r * kPhases + k) * kLanes;
          // The difference is formed before summing: where the network is right, it is tiny.
          const Floats here = load(m.label + at) == static_cast<int32_t>(c) ? load(m.at_label + at) : value;
          row_g += here * load(m.coefficient + at);
          row_ug += here * load(m.coefficient_high + at);
          value *= e.along;
        }
        const float v = patch.v + static_cast<float>(r) * patch.dv;
        g += row_g;
        vg += v * row_g;
        ug += row_ug;
        uvg += v * row_ug;
        e.first *= e.down;
        e.along *= e.twist;
      }
    } else {
      for (int r = 0; r < kRows; ++r) {
        const float* f = m.coefficient + r * kPhases * kLanes;
        const float* f_high = m.coefficient_high + r * kPhases * kLanes;
        Floats row_g = load(f + (kPhases - 1) * kLanes), row_ug = load(f_high + (kPhases - 1) * kLanes);
        for (int k = kPhases - 2; k >= 0; --k) {
          row_g = row_g * e.along + load(f + k * kLanes);
          row_ug = row_ug * e.along + load(f_high + k * kLanes);
        }
        const Floats lower = (patch.v + static_cast<float>(r) * patch.dv) * e.first;
        g += e.first * row_g;
        vg += lower * row_g;
        ug += e.first * row_ug;
        uvg += lower * row_ug;
        e.first *= e.down;
        e.along *= e.twist;
      }
    }
    write_gradient<kSmoothed>(loss, s, place, c, g, vg, ug, uvg, smooth, slot, low, high);
  }
}

// Calls call.operator()<kRows, kPhases>() for the patch's size.
template <class Call>
CAWA_FAST_INLINE void with_size(const Patch& patch, const Call& call) {
  const auto with_rows = [&]<int kRows>() __attribute__((always_inline)) {
    switch (patch.phases) {
      case 1:
        return call.template operator()<kRows, 1>();
      case 2:
        return call.template operator()<kRows, 2>();
      case 3:
        return call.template operator()<kRows, 3>();
      default:
        return call.template operator()<kRows, 4>();
    }
  };
  switch (patch.rows) {
    case 1:
      return with_rows.template operator()<1>();
    case 2:
      return with_rows.template operator()<2>();
    case 3:
      return with_rows.template operator()<3>();
    default:
      return with_rows.template operator()<4>();
  }
}

// Gathers the labels of a vector of patches and marks the classes among them. Returns whether any label is valid.
// labels: (rows, label_width + 1).
inline bool gather_labels(const PatchMemory& m, int64_t classes, const Place& place, const Patch& patch,
                          const uint16_t* labels, int64_t label_stride) {
  std::memset(m.present, 0, classes);
  bool any = false;
  for (int r = 0; r < patch.rows; ++r) {
    for (int k = 0; k < patch.phases; ++k) {
      const Ints label = gather(labels + r * label_stride, load(place.column + k * place.phase_stride));
      int32_t* to = m.label + (r * patch.phases + k) * kLanes;
      store(to, label);
      const uint32_t valid = bits(label != kInvalid);
      if (!valid) continue;
      any = true;
      if (bits(label == to[0]) == kAllLanes) {  // mostly so, since labels are areas
        m.present[to[0]] = 1;
      } else {
        for (int lane = 0; lane < kLanes; ++lane) {
          if (to[lane] != kInvalid) m.present[to[lane]] = 1;
        }
      }
    }
  }
  return any;
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
