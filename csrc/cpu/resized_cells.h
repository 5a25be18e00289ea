// Resize and cross-entropy of one vector of cells, pixel by pixel: one exponential per pixel and class. This serves
// what resized_patch.h cannot: steep cells, logits that are not moderate (rows.h), and shrinking. Stages:
//   1. per output row and phase: interpolate all classes; maximum
//   2. exponentials and their sum, then the loss and the coefficients of the gradient
//   3. per class: sum the gradients of rows and phases, with their four bilinear weights, in four accumulators
#pragma once

#include "../kernels.h"
#include "region.h"
#include "rows.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// Floats of exponentials that are kept for stage 3: 256 KiB, a quarter of a common L2 cache.
constexpr int64_t kKept = 256 * 1024 / sizeof(float);

// Exponentials of one class in a vector of patches are computed from this many numbers (resized_patch.h).
constexpr int kSequence = 4;
// A patch is at most kSide x kSide pixels of a cell.
constexpr int kSide = 4, kPatch = kSide * kSide;

// Of a vector of patches, by pixel and lane.
struct PatchMemory {
  int32_t* label;           // kInvalid where invalid
  uint8_t* present;         // (classes): whether the class is the label of a pixel
  float* sum;               // of the exponentials
  float* at_label;          // the label's exponential; from stage 3 on, minus label_term of Terms in pixel_loss.h
  float* coefficient;       // see Terms
  float* coefficient_high;  // the same, times the weight of the right input
  float *dot, *inverse, *inverse_high;  // see resized_region.h
};

// The memory of a task, carved from `memory`; with null only `size`, in floats, is of use.
struct CellScratch {
  CellScratch(const ResizedCrossEntropy& p, float* memory)
      : width(p.columns->blocks * kBlock), right(p.columns->gathered ? width : 1), classes(p.input.classes) {
    most_phases = 1;
    for (int64_t block = 0; block < p.columns->blocks; ++block) {
      most_phases = larger(most_phases, p.columns->first_phase[block + 1] - p.columns->first_phase[block]);
    }
    most_rows = 1;
    for (int64_t i = 0; i < p.rows->count; ++i) {
      most_rows = larger(most_rows, p.rows->groups[i].end - p.rows->groups[i].begin);
    }
    const int64_t row_of_exponentials = classes * most_phases * kLanes;
    kept_rows = larger(1, smaller(most_rows, kKept / row_of_exponentials));

    float* next = memory;
    const auto take = [&next](int64_t n) {
      float* start = next;
      next += (n + kBlock - 1) / kBlock * kBlock;
      return start;
    };
    for (int i = 0; i < 2; ++i) {
      row[i] = take(classes * row_stride());
      for (int side = 0; side < 2; ++side) sums[i][side] = take(classes * width);
    }
    line = take(larger(row_stride(), p.input.width) + kBlock);
    for (int i = 0; i < 2; ++i) top[i] = take(row_stride());
    sequences = take(classes * kSequence * kLanes);
    patch.sum = take(kPatch * kLanes);
    patch.at_label = take(kPatch * kLanes);
    patch.coefficient = take(kPatch * kLanes);
    patch.coefficient_high = take(kPatch * kLanes);
    patch.dot = take(kPatch * kLanes);
    patch.inverse = take(kPatch * kLanes);
    patch.inverse_high = take(kPatch * kLanes);
    if (p.pass == Pass::kRegionSums) region = {take(classes * kLanes), take(classes * kLanes)};
    patch.label = reinterpret_cast<int32_t*>(take(kPatch * kLanes));
    patch.present = reinterpret_cast<uint8_t*>(take((classes + 4) / 4));
    exponentials = take(kept_rows * row_of_exponentials);
    coefficient = take(kept_rows * most_phases * kLanes);
    coefficient_high = take(kept_rows * most_phases * kLanes);
    labels = reinterpret_cast<uint16_t*>(take((most_rows * (p.label_width + 1) + 2) / 2));
    size = next - memory;
  }

  // Floats per class in `row`, which has the left input of slot s at s and the right one at s + right.
  int64_t row_stride() const { return width + larger(right, kBlock); }

  int64_t width, right, classes, most_phases, most_rows, kept_rows, size;
  float* row[2];      // (classes, row_stride) each: two input rows
  float* sums[2][2];  // (classes, width) each: for two gradient rows, the sums of low and high inputs by slot
  float* line;        // (input width): one input row
  float* top[2];      // (row_stride) each: the largest input over classes, as in `row`
  float* sequences;   // (classes, kSequence, kLanes), see resized_patch.h
  PatchMemory patch;
  RegionSums region = {};
  float* exponentials;      // (kept_rows, classes, phases, kLanes)
  float* coefficient;       // (kept_rows, phases, kLanes)
  float* coefficient_high;  // the same, times the weight of the right input
  uint16_t* labels;         // (rows, label_width + 1): decoded labels of the group, the last of each row kInvalid
};

// Memory that is needed after this group: that of class 0, and the step to the next class in bytes. Rows of
// neighbouring classes lie far apart, so that no hardware prefetches them. Without these prefetches, reading the inputs
// and writing the gradient took 40 % of the time at 2x150x128x128.
struct Ahead {
  const char* at;
  int64_t step;
};

// The data of one vector of cells in one group.
struct Place {
  const float *low, *high;       // the input rows above and below, left inputs of class 0
  int64_t class_stride, right;   // of `low` and `high`; right inputs lie `right` after left ones
  const int32_t* column;         // (phases, kLanes): output columns, label_width for none
  const float* high_weight;      // (phases, kLanes): weights in [0, 1] of the right inputs
  const float* offset;           // the same without rounding
  int64_t phase_stride, phases;  // phase_stride: of `column`, `high_weight` and `offset`
  Ahead next_input, gradient;
};

// The upstream gradient of the pixels in a row of labels that starts at `label_start`.
CAWA_FAST_INLINE Floats upstream_of(const ResizedCrossEntropy& p, int64_t label_start, const int32_t* column) {
  if (!p.loss.grad_per_pixel) return common_grad(p.loss);
  float grads[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    grads[lane] = p.loss.grad[label_start + smaller(column[lane], p.label_width - 1)];
  }
  return load(grads);
}

CAWA_FAST_INLINE void write_losses(const ResizedCrossEntropy& p, int64_t label_start, const int32_t* column,
                                   Floats losses) {
  if (!p.loss.pixel_loss) return;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (column[lane] < p.label_width) p.loss.pixel_loss[label_start + column[lane]] = losses[lane];
  }
}

// Stages 1 and 2 for kPhases phases, from `phase` on, of one output row. kFinite: all inputs are moderate (rows.h).
// row_weight: weight in [0, 1] of the input row below. labels: (label_width + 1), the row's decoded labels. e: output,
// the exponentials of class 0, `step` floats per class. coefficient, coefficient_high: output, (kPhases, kLanes).
// smooth, smooth_high: sums that it adds to. Returns the scaled losses, summed over phases.
template <int kPhases, bool kFinite, bool kSmoothed, Pass kPass>
Doubles softmax(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, const Place& place, int64_t phase,
                float row_weight, int64_t label_start, const uint16_t* labels, float* e, int64_t step,
                float* coefficient, float* coefficient_high, Floats* smooth, Floats* smooth_high) {
  constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kRegionGradient;
  const Loss& loss = p.loss;
  const int64_t classes = p.input.classes;
  Pixels pixels[kPhases];
  Floats weight[kPhases];
  bool any = false;
  for (int k = 0; k < kPhases; ++k) {
    weight[k] = load(place.high_weight + (phase + k) * place.phase_stride);
    any |= look_up(loss, gather(labels, load(place.column + (phase + k) * place.phase_stride)), pixels[k]);
  }
  if (!any && !loss.pixel_loss) {  // nothing to compute
    if (kGrad) {
      for (int k = 0; k < kPhases; ++k) {
        store(coefficient + k * kLanes, Floats{});
        store(coefficient_high + k * kLanes, Floats{});
        for (int64_t c = 0; c < classes; ++c) store(e + c * step + k * kLanes, Floats{});
      }
    }
    return Doubles{};
  }

  // Stage 1: interpolation and maximum. With finite inputs, the difference of neighbours saves a multiplication. With
  // infinite logits, as of classes that a user masks out, -inf - -inf would be NaN.
  Floats top[kPhases];
  for (int k = 0; k < kPhases; ++k) top[k] = broadcast(-kInfinity);
  const float above = 1 - row_weight;
  for (int64_t c = 0; c < classes; ++c) {
    const float* low = place.low + c * place.class_stride;
    const float* high = place.high + c * place.class_stride;
    const int64_t right = place.right;
    const Floats left_value = load(low) * above + load(high) * row_weight;
    const Floats right_value = load(low + right) * above + load(high + right) * row_weight;
    const Floats difference = right_value - left_value;
    for (int k = 0; k < kPhases; ++k) {
      const Floats z =
          kFinite ? difference * weight[k] + left_value : left_value * (1 - weight[k]) + right_value * weight[k];
      top[k] = maximum(z, top[k]);
      store(e + c * step + k * kLanes, z);
    }
  }

  // Stage 2: exponentials, their sums, and the loss.
  float at_label[kPhases * kLanes];
  for (int i = 0; i < kPhases * kLanes; ++i) at_label[i] = e[pixels[i / kLanes].label[i % kLanes] * step + i];
  Floats sum[kPhases] = {}, weighted[kPhases] = {};
  for (int64_t c = 0; c < classes; ++c) {
    for (int k = 0; k < kPhases; ++k) {
      float* at = e + c * step + k * kLanes;
      const Floats shifted = load(at) - top[k];
      Floats value = exp2<!kFinite>(shifted * kLog2E);
      sum[k] += value;
      if (kSmoothed) weighted[k] += loss.weight[c] * shifted;
      if (!kFinite) value = bit_cast<Floats>(bit_cast<Ints>(value) & pixels[k].valid);  // stage 3 would compute 0 * NaN
      if (kPass != Pass::kLoss) store(at, value);
    }
  }
  Doubles total = {};
  for (int k = 0; k < kPhases; ++k) {
    const int32_t* column = place.column + (phase + k) * place.phase_stride;
    const Floats upstream = upstream_of(p, label_start, column);
    float label_term[kLanes];
    const Floats log_sum = log_of_positive(sum[k]), negative_log = (top[k] - load(at_label + k * kLanes)) + log_sum;
    const Terms terms = pixel_terms(loss, pixels[k], sum[k], log_sum, negative_log, weighted[k], upstream);
    total += __builtin_convertvector(terms.loss * pixels[k].factor, Doubles);
    write_losses(p, label_start, column, terms.loss);
    if (kPass == Pass::kRegionSums) add_sums(p.region, s.region, pixels[k], e + k * kLanes, step, sum[k]);
    if (kGrad) {
      // Of a region loss, e becomes the gradient itself.
      const bool whole = kPass == Pass::kRegionGradient;
      const Floats of_e = whole ? masked(broadcast(1.0f), pixels[k].valid) : terms.coefficient;
      store(coefficient + k * kLanes, of_e);
      store(coefficient_high + k * kLanes, of_e * weight[k]);
      if (kSmoothed) {
        *smooth += terms.smooth;
        *smooth_high += terms.smooth * weight[k];
      }
      if (whole) {
        to_gradient(p.region, RegionGradient(p.region, n), pixels[k], terms, e + k * kLanes, step, sum[k]);
        continue;
      }
      store(label_term, masked(terms.label_term, pixels[k].valid));
      for (int lane = 0; lane < kLanes; ++lane) e[pixels[k].label[lane] * step + k * kLanes + lane] -= label_term[lane];
    }
  }
  return total;
}

// Classes whose gradients stage 3 sums together, so that they share the loads of the coefficients. Their sums fill the
// registers.
#if defined(__AVX512F__)
constexpr int kClasses = 4;
#else
constexpr int kClasses = 2;
#endif

// Exponentials and coefficients of output rows [first, last) from stage 2.
struct Rows {
  int32_t first, last;
  int64_t phases, classes;
  const float *exponentials, *coefficient, *coefficient_high;  // as in CellScratch
  const float* high_weight;                                    // by output row
};

// Stage 3 for kCount classes from c on: adds the gradients of four inputs at `slot` to low[0], low[1] (input row above,
// left and right) and high[0], high[1] (below), (classes, width) each. Let g be the gradient of an output pixel, and u
// and v its weights of the right and the lower input. The sums of g, v g, u g and u v g give those of
// (1-u)(1-v) g, u (1-v) g, (1-u) v g and u v g. `smooth`: the same four sums of the smoothing term.
template <int kCount, bool kSmoothed>
CAWA_FAST_INLINE void add_gradient(const Loss& loss, const Rows& rows, const Floats* smooth, int64_t c, int64_t width,
                                   int64_t slot, float* const* low, float* const* high) {
  const int64_t step = rows.phases * kLanes;
  Floats g[kCount] = {}, vg[kCount] = {}, ug[kCount] = {}, uvg[kCount] = {};
  for (int32_t y = rows.first; y < rows.last; ++y) {
    const int64_t row = y - rows.first;
    const float* e = rows.exponentials + (row * rows.classes + c) * step;
    const float* coefficient = rows.coefficient + row * step;
    const float* coefficient_high = rows.coefficient_high + row * step;
    Floats row_g[kCount] = {}, row_ug[kCount] = {};
    for (int64_t at = 0; at < step; at += kLanes) {
      const Floats k = load(coefficient + at), k_high = load(coefficient_high + at);
      for (int i = 0; i < kCount; ++i) {
        const Floats value = load(e + i * step + at);
        row_g[i] += value * k;
        row_ug[i] += value * k_high;
      }
    }
    const float v = rows.high_weight[y];
    for (int i = 0; i < kCount; ++i) {
      g[i] += row_g[i];
      vg[i] += v * row_g[i];
      ug[i] += row_ug[i];
      uvg[i] += v * row_ug[i];
    }
  }
  for (int i = 0; i < kCount; ++i) {
    if (kSmoothed) {
      g[i] -= loss.weight[c + i] * smooth[0];
      vg[i] -= loss.weight[c + i] * smooth[1];
      ug[i] -= loss.weight[c + i] * smooth[2];
      uvg[i] -= loss.weight[c + i] * smooth[3];
    }
    const int64_t at = (c + i) * width + slot;
    store(low[0] + at, load(low[0] + at) + ((g[i] - vg[i]) - (ug[i] - uvg[i])));
    store(low[1] + at, load(low[1] + at) + (ug[i] - uvg[i]));
    store(high[0] + at, load(high[0] + at) + (vg[i] - uvg[i]));
    store(high[1] + at, load(high[1] + at) + uvg[i]);
  }
}

// All stages for output rows [begin, end) of one vector of cells. labels: (rows, label_width + 1), their decoded
// labels. Adds the gradient to low[0], low[1], high[0] and high[1], as add_gradient does, and returns the scaled
// losses.
template <bool kFinite, bool kSmoothed, Pass kPass>
Doubles run_cells(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, int32_t begin, int32_t end,
                  const uint16_t* labels, const Place& place, int64_t slot, float* const* low, float* const* high) {
  Doubles total = {};
  for (int32_t first = begin; first < end; first += static_cast<int32_t>(s.kept_rows)) {
    const int32_t last = static_cast<int32_t>(smaller(first + s.kept_rows, end));
    const int64_t row_size = s.classes * place.phases * kLanes;
    Floats smooth[4] = {};  // the four sums of add_gradient
    for (int32_t y = first; y < last; ++y) {
      const float row_weight = p.rows->high_weight[y];
      const int64_t label_start = (n * p.label_height + y) * p.label_width;
      const uint16_t* row_labels = labels + (y - begin) * (p.label_width + 1);
      float* e = s.exponentials + (y - first) * row_size;
      float* coefficient = s.coefficient + (y - first) * place.phases * kLanes;
      float* coefficient_high = s.coefficient_high + (y - first) * place.phases * kLanes;
      Floats row_smooth = {}, row_smooth_high = {};
      const auto run = [&]<int kPhases>(int64_t phase) __attribute__((always_inline)) {
        const int64_t at = phase * kLanes;
        total += softmax<kPhases, kFinite, kSmoothed, kPass>(p, s, n, place, phase, row_weight, label_start, row_labels,
                                                             e + at, place.phases * kLanes, coefficient + at,
                                                             coefficient_high + at, &row_smooth, &row_smooth_high);
      };
      int64_t phase = 0;
      for (; phase + 4 <= place.phases; phase += 4) run.template operator()<4>(phase);
      if (phase + 2 <= place.phases) {
        run.template operator()<2>(phase);
        phase += 2;
      }
      if (phase < place.phases) run.template operator()<1>(phase);
      if (kSmoothed) {
        smooth[0] += row_smooth;
        smooth[1] += row_weight * row_smooth;
        smooth[2] += row_smooth_high;
        smooth[3] += row_weight * row_smooth_high;
      }
    }
    if (kPass != Pass::kGradient && kPass != Pass::kRegionGradient) continue;

    // Stage 3: the gradient.
    const Rows rows{first,          last,          place.phases,       s.classes,
                    s.exponentials, s.coefficient, s.coefficient_high, p.rows->high_weight};
    int64_t c = 0;
    for (; c + kClasses <= s.classes; c += kClasses) {
      add_gradient<kClasses, kSmoothed>(p.loss, rows, smooth, c, s.width, slot, low, high);
    }
    for (; c < s.classes; ++c) add_gradient<1, kSmoothed>(p.loss, rows, smooth, c, s.width, slot, low, high);
  }
  return total;
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
