// The loss of one vector of pixels and the coefficients of their gradient, from their sums of exponentials.
#pragma once

#include "../kernels.h"
#include "math.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// One vector of pixels: labels, and the table entries that they select.
struct Pixels {
  int32_t label[kLanes];  // 0 where invalid
  Ints valid;             // all bits set or none
  Floats at_label;        // (1 - s) * weight of the label, 0 where invalid
  Floats factor;          // scale of the label, 0 where invalid
};

// table[index[i]] in lane i. `label` holds the same values as `index`, in memory. `few`: the table has room for 32
// entries, which fit into two registers, and index < 32.
CAWA_FAST_INLINE Floats entries(const float* table, bool few, const int32_t* label, Ints index) {
#if defined(__AVX512F__)
  if (few) {
    return bit_cast<Floats>(_mm512_permutex2var_ps(bit_cast<__m512>(load(table)), bit_cast<__m512i>(index),
                                                   bit_cast<__m512>(load(table + kLanes))));
  }
#endif
  float result[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = table[label[lane]];
  (void)few, (void)index;
  return load(result);
}

// Fills `pixels` for decoded labels, kInvalid among them. Returns whether any is valid.
CAWA_FAST_INLINE bool look_up(const Loss& loss, Ints label, Pixels& pixels) {
  pixels.valid = label != kInvalid;
  const Ints index = label & pixels.valid;
  store(pixels.label, index);
  pixels.at_label = pixels.factor = Floats{};
  if (!bits(pixels.valid)) return false;
  const Floats at_label = entries(loss.at_label, loss.few_classes, pixels.label, index);
  const Floats factor =
      loss.uniform_scale ? broadcast(loss.scale[0]) : entries(loss.scale, loss.few_classes, pixels.label, index);
  pixels.at_label = bit_cast<Floats>(bit_cast<Ints>(at_label) & pixels.valid);
  pixels.factor = bit_cast<Floats>(bit_cast<Ints>(factor) & pixels.valid);
  return true;
}

// Loss and gradient of one vector of pixels. With e_c = exp(z_c - maximum), and label_term subtracted from the label's
// e_c first, the gradient of class c is e_c * coefficient - smooth * weight[c].
struct Terms {
  Floats loss;         // without scale and upstream gradient; 0 where invalid
  Floats coefficient;  // 0 where invalid
  Floats smooth;       // 0 where invalid
  Floats label_term;
  Floats of_all, of_label;  // coefficient * sum, and the part of it that is the label's term; for region.h
};

// `sum`: of exp(z_c - reference), for any reference logit. `log_sum`: its logarithm, read only with smoothing.
// `negative_log`: minus the logarithm of the label's probability. `weighted`: with smoothing, the sum of weight[c] *
// (z_c - reference). `grad`: the upstream gradient.
// The factor (1 - p)^gamma of a focal loss and, if f is the loss as a function of n = -log p, its derivative f'(n):
//   f(n) = (1 - p)^gamma n,   f'(n) = (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p n
struct Focal {
  Floats factor, derivative;
};

CAWA_FAST_INLINE Floats power(Floats x, float exponent) {
  return exp2<true>(log_of_positive(x) * (exponent * kLog2E));  // x normal, > 0
}

CAWA_FAST_INLINE Focal focal(float gamma, Floats negative_log) {
  const Floats p = exp2<true>(negative_log * -kLog2E);
  const Floats miss = maximum(1.0f - p, broadcast(0x1p-126f));    // 0^(gamma - 1) is infinite
  const Floats scaled = p == 0.0f ? Floats{} : p * negative_log;  // 0 * inf
  Focal result;
  if (gamma == 2.0f) {
    result.factor = miss * miss;
    result.derivative = result.factor + 2.0f * miss * scaled;
  } else {
    result.factor = power(miss, gamma);
    result.derivative = result.factor + gamma * (power(miss, gamma - 1.0f) * scaled);
  }
  return result;
}

CAWA_FAST_INLINE Terms pixel_terms(const Loss& loss, const Pixels& pixels, Floats sum, Floats log_sum,
                                   Floats negative_log, Floats weighted, Floats grad) {
  Terms terms;
  const bool smoothed = loss.smooth > 0;
  Floats value = pixels.at_label * negative_log;
  if (smoothed) value += loss.smooth * (loss.weight_sum * log_sum - weighted);
  const Floats factor = pixels.factor * grad;
  Floats of_label = pixels.at_label * factor;
  if (loss.gamma > 0) {
    const Focal f = focal(loss.gamma, negative_log);
    value *= f.factor;
    of_label *= f.derivative;
  }
  const Floats of_all = smoothed ? of_label + factor * (loss.smooth * loss.weight_sum) : of_label;
  const Floats coefficient = of_all / sum;
  terms.of_all = of_all;
  terms.of_label = of_label;
  // (e_y - sum) / sum is p_y - 1. With smoothing only of_label / of_all of the coefficient belongs to this term; the
  // term is 0 where the coefficient is.
  terms.label_term = smoothed ? (of_all != 0.0f ? sum * (of_label / of_all) : Floats{}) : sum;
  // Masked, not multiplied by 0: 0 * NaN is NaN.
  terms.loss = bit_cast<Floats>(bit_cast<Ints>(value) & pixels.valid);
  terms.coefficient = bit_cast<Floats>(bit_cast<Ints>(coefficient) & pixels.valid);
  terms.smooth = bit_cast<Floats>(bit_cast<Ints>(factor * loss.smooth) & pixels.valid);
  return terms;
}

// The upstream gradient of a vector of pixels if it is the same for all pixels.
CAWA_FAST_INLINE Floats common_grad(const Loss& loss) { return broadcast(loss.grad ? loss.grad[0] : 1.0f); }

CAWA_FAST_INLINE double sum_of_lanes(Doubles v) {
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
