// Soft sums of each class, for region losses such as Dice, and their gradient, of one vector of pixels.
//
// With the probabilities p of the pixels, their labels y, and sums over the valid pixels of an image,
//
//     I_c = sum p_c [y = c],   P_c = sum p_c, or sum p_c^2 if squared
//
// a region loss is a function of I and P, and its derivatives a and b by them come from the caller. With
// h_c = b_c (2 b_c p_c if squared) + a_c [y = c], the gradient of the logits is p_c (h_c - sum_k h_k p_k). It is added
// to that of the cross-entropy.
#pragma once

#include "pixel_loss.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

template <Pass kPass>
constexpr bool kIsRegion = kPass == Pass::kRegionSums || kPass == Pass::kRegionGradient;

// Calls call.operator()<kSmoothed, kPass>().
template <class Call>
CAWA_FAST_INLINE void with_pass(Pass pass, bool smoothed, const Call& call) {
  const auto with_smoothing = [&]<bool kSmoothed>() {
    switch (pass) {
      case Pass::kLoss:
        return call.template operator()<kSmoothed, Pass::kLoss>();
      case Pass::kGradient:
        return call.template operator()<kSmoothed, Pass::kGradient>();
      case Pass::kRegionSums:
        return call.template operator()<kSmoothed, Pass::kRegionSums>();
      case Pass::kRegionGradient:
        return call.template operator()<kSmoothed, Pass::kRegionGradient>();
    }
  };
  if (smoothed) return with_smoothing.template operator()<true>();
  with_smoothing.template operator()<false>();
}

// Sums of an item's pixels, (classes, kLanes) each.
struct RegionSums {
  float *intersection, *prediction;
};

// Of the image that is computed: derivatives (classes) each by the sums.
struct RegionGradient {
  RegionGradient(const Region& region, int64_t image)
      : of_intersection(region.grad_sums + 2 * image * region.stride), of_prediction(of_intersection + region.stride) {}
  const float *of_intersection, *of_prediction;
};

CAWA_FAST_INLINE Floats masked(Floats v, Ints mask) { return bit_cast<Floats>(bit_cast<Ints>(v) & mask); }

// Values of the pixels' labels: table[label * step + lane]. 0 where invalid.
CAWA_FAST_INLINE Floats at_labels(const float* table, int64_t step, const Pixels& pixels) {
  float result[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = table[pixels.label[lane] * step + lane];
  return masked(load(result), pixels.valid);
}

// Adds the sums. e: the exponentials of class 0, `step` floats per class.
CAWA_FAST_INLINE void add_sums(const Region& region, const RegionSums& sums, const Pixels& pixels, const float* e,
                               int64_t step, Floats sum) {
  const Floats inverse = masked(1.0f / sum, pixels.valid);
  for (int64_t c = 0; c < region.classes; ++c) {
    const Floats p = masked(load(e + c * step), pixels.valid) * inverse;
    float* to = sums.prediction + c * kLanes;
    store(to, load(to) + (region.squared ? p * p : p));
  }
  const Floats at_label = at_labels(e, step, pixels) * inverse;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (pixels.valid[lane]) sums.intersection[pixels.label[lane] * kLanes + lane] += at_label[lane];
  }
}

// The gradient of the label's logit. at_label: its exponential. dot: sum_k h_k p_k.
CAWA_FAST_INLINE Floats label_gradient(const Terms& terms, Floats at_label, Floats sum, Floats inverse, Floats h,
                                       Floats dot) {
  // p_y - 1 is formed from the exponentials: where the network is right, it is tiny.
  const Floats of_loss = (at_label - sum) * inverse * terms.of_all + (terms.of_all - terms.of_label);
  return of_loss + at_label * inverse * (h - dot);
}

// Replaces the exponentials by the gradient without its smoothing term, 0 where invalid.
CAWA_FAST_INLINE void to_gradient(const Region& region, const RegionGradient& gradient, const Pixels& pixels,
                                  const Terms& terms, float* e, int64_t step, Floats sum) {
  const Floats inverse = 1.0f / sum, at_label = at_labels(e, step, pixels), p = at_label * inverse;
  const float* b = gradient.of_prediction;
  Floats dot = {};
  for (int64_t c = 0; c < region.classes; ++c) {
    const Floats value = load(e + c * step);
    dot += b[c] * value * (region.squared ? 2.0f * inverse * value : broadcast(1.0f));
  }
  Floats of_intersection, h;
  for (int lane = 0; lane < kLanes; ++lane) {
    of_intersection[lane] = gradient.of_intersection[pixels.label[lane]];
    h[lane] = b[pixels.label[lane]];
  }
  if (region.squared) h *= 2.0f * p;
  h += of_intersection;
  dot = dot * inverse + of_intersection * p;
  const Floats of_label = label_gradient(terms, at_label, sum, inverse, h, dot), common = terms.of_all - dot;
  for (int64_t c = 0; c < region.classes; ++c) {
    const Floats here = load(e + c * step) * inverse;
    store(e + c * step,
          masked(here * (common + (region.squared ? 2.0f * b[c] * here : broadcast(b[c]))), pixels.valid));
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (pixels.valid[lane]) e[pixels.label[lane] * step + lane] = of_label[lane];
  }
}

// Clears the sums of an item, and writes them to `out`, (2, classes).
CAWA_FAST_INLINE void clear_sums(const Region& region, const RegionSums& sums) {
  std::memset(sums.intersection, 0, region.classes * kLanes * sizeof(float));
  std::memset(sums.prediction, 0, region.classes * kLanes * sizeof(float));
}

CAWA_FAST_INLINE void write_sums(const Region& region, const RegionSums& sums, double* out) {
  for (int64_t c = 0; c < region.classes; ++c) {
    out[c] = sum_of_lanes(__builtin_convertvector(load(sums.intersection + c * kLanes), Doubles));
    out[region.classes + c] = sum_of_lanes(__builtin_convertvector(load(sums.prediction + c * kLanes), Doubles));
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
