// The parts of resized_patch.h for region losses (region.h): sums of the classes' probabilities, and the gradient.
//
// Cost per class and patch of 16 pixels beyond a cross-entropy's: the sums need the sequences, their sums, and one more
// sum per class; the gradient needs the sequences again, since the derivatives by the sums are known only when all
// pixels have been summed. Storing the sequences in between would take longer than computing them.
#pragma once

#include "region.h"
#include "resized_patch.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// Adds the classes' probabilities. m.coefficient: 1 / the sum of the exponentials, 0 where invalid.
template <int kRows, int kPhases>
void add_probabilities(const CellScratch& s) {
  const PatchMemory& m = s.patch;
  for (int64_t c = 0; c < s.classes; ++c) {
    Sequence e = load_sequence(s.sequences + c * kSequence * kLanes);
    Floats prediction = {};
    if (m.present[c]) {
      Floats intersection = {};
      for (int r = 0; r < kRows; ++r) {
        Floats value = e.first;
        for (int k = 0; k < kPhases; ++k) {
          const int64_t at = (r * kPhases + k) * kLanes;
          const Floats p = value * load(m.coefficient + at);
          prediction += p;
          intersection += masked(p, load(m.label + at) == static_cast<int32_t>(c));
          value *= e.along;
        }
        e.first *= e.down;
        e.along *= e.twist;
      }
      float* to = s.region.intersection + c * kLanes;
      store(to, load(to) + intersection);
    } else {
      for (int r = 0; r < kRows; ++r) {
        const float* f = m.coefficient + r * kPhases * kLanes;
        Floats row = load(f + (kPhases - 1) * kLanes);
        for (int k = kPhases - 2; k >= 0; --k) row = row * e.along + load(f + k * kLanes);
        prediction += e.first * row;
        e.first *= e.down;
        e.along *= e.twist;
      }
    }
    float* to = s.region.prediction + c * kLanes;
    store(to, load(to) + prediction);
  }
}

// As add_exponentials, and the sum over the classes of b times the exponential to m.dot, for rows [kFirst, kFirst +
// kRows) of the patch. Two sums per pixel of a whole patch would not fit into the registers.
template <int kFirst, int kRows, int kPhases>
CAWA_FAST_INLINE void add_exponentials_and_dots(const CellScratch& s, const float* b) {
  const PatchMemory& m = s.patch;
  Floats sum[kRows][kPhases] = {}, dot[kRows][kPhases] = {};
  for (int64_t c = 0; c < s.classes; ++c) {
    Sequence e = load_sequence(s.sequences + c * kSequence * kLanes);
    for (int r = 0; r < kFirst; ++r) {
      e.first *= e.down;
      e.along *= e.twist;
    }
    const Floats factor = broadcast(b[c]);
    const bool present = m.present[c] != 0;
    for (int r = 0; r < kRows; ++r) {
      Floats value = e.first;
      for (int k = 0; k < kPhases; ++k) {
        sum[r][k] += value;
        dot[r][k] += value * factor;
        if (present) {
          const int64_t at = ((kFirst + r) * kPhases + k) * kLanes;
          store(m.at_label + at, load(m.label + at) == static_cast<int32_t>(c) ? value : load(m.at_label + at));
        }
        value *= e.along;
      }
      e.first *= e.down;
      e.along *= e.twist;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kPhases; ++k) {
      const int64_t at = ((kFirst + r) * kPhases + k) * kLanes;
      store(m.sum + at, sum[r][k]);
      store(m.dot + at, dot[r][k]);
    }
  }
}

// Stores what add_region_gradient reads of one vector of pixels, at `at`.
CAWA_FAST_INLINE void store_region_terms(const CellScratch& s, const RegionGradient& gradient, const Pixels& pixels,
                                         const Terms& terms, int64_t at, Floats sum, Floats at_label, Floats u) {
  const PatchMemory& m = s.patch;
  const Ints label = load(pixels.label);
  const bool few = s.classes <= 32;
  const Floats inverse = 1.0f / sum, of_intersection = entries(gradient.of_intersection, few, pixels.label, label);
  const Floats dot = (load(m.dot + at) + of_intersection * at_label) * inverse;
  const Floats h = entries(gradient.of_prediction, few, pixels.label, label) + of_intersection;
  const Floats of_label = label_gradient(terms, at_label, sum, inverse, h, dot);
  const Floats coefficient = masked((terms.of_all - dot) * inverse, pixels.valid);
  const Floats valid_inverse = masked(inverse, pixels.valid);
  store(m.at_label + at, masked(of_label, pixels.valid));
  store(m.coefficient + at, coefficient);
  store(m.coefficient_high + at, coefficient * u);
  store(m.inverse + at, valid_inverse);
  store(m.inverse_high + at, valid_inverse * u);
}

// As add_gradient in resized_patch.h. The gradient of class c at a pixel is exponential * (coefficient + b_c / sum), or
// m.at_label where c is the label.
template <int kRows, int kPhases, bool kSmoothed>
void add_region_gradient(const Loss& loss, const CellScratch& s, const RegionGradient& gradient, const Place& place,
                         const Patch& patch, const Floats* smooth, int64_t slot, float* const* low,
                         float* const* high) {
  const PatchMemory& m = s.patch;
  for (int64_t c = 0; c < s.classes; ++c) {
    Sequence e = load_sequence(s.sequences + c * kSequence * kLanes);
    const Floats b = broadcast(gradient.of_prediction[c]);
    Floats g = {}, vg = {}, ug = {}, uvg = {};
    for (int r = 0; r < kRows; ++r) {
      const float v = patch.v + static_cast<float>(r) * patch.dv;
      Floats row_g = {}, row_ug = {};
      if (m.present[c]) {
        Floats value = e.first;
        for (int k = 0; k < kPhases; ++k) {
          const int64_t at = (r * kPhases + k) * kLanes;
          const Floats usual = value * (load(m.coefficient + at) + b * load(m.inverse + at));
          const Floats here = load(m.label + at) == static_cast<int32_t>(c) ? load(m.at_label + at) : usual;
          row_g += here;
          row_ug += here * (patch.u + static_cast<float>(k) * patch.du);
          value *= e.along;
        }
      } else {
        const int64_t row = r * kPhases * kLanes;
        for (int k = kPhases - 1; k >= 0; --k) {
          const int64_t at = row + k * kLanes;
          row_g = row_g * e.along + (load(m.coefficient + at) + b * load(m.inverse + at));
          row_ug = row_ug * e.along + (load(m.coefficient_high + at) + b * load(m.inverse_high + at));
        }
        row_g *= e.first;
        row_ug *= e.first;
      }
      g += row_g;
      vg += v * row_g;
      ug += row_ug;
      uvg += v * row_ug;
      e.first *= e.down;
      e.along *= e.twist;
    }
    write_gradient<kSmoothed>(loss, s, place, c, g, vg, ug, uvg, smooth, slot, low, high);
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
