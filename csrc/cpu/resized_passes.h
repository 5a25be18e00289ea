// One vector of patches in one pass: the stages of resized_patch.h and, for region losses, of resized_region.h.
#pragma once

#include "resized_patch.h"
#include "resized_region.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// Stage 3: losses and coefficients of all pixels of image n. label_start: of the patch's first row. smooth: adds the
// four sums of add_gradient. Returns the scaled losses.
template <bool kSmoothed, Pass kPass>
Doubles finish_pixels(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, const Place& place,
                      const Patch& patch, int64_t label_start, Floats reference, const WeightedLogits& weighted,
                      Floats* smooth) {
  const PatchMemory& m = s.patch;
  Doubles total = {};
  for (int r = 0; r < patch.rows; ++r) {
    const float v = patch.v + static_cast<float>(r) * patch.dv;
    Floats row_loss = {};
    for (int k = 0; k < patch.phases; ++k) {
      const int64_t at = (r * patch.phases + k) * kLanes;
      const int32_t* column = place.column + k * place.phase_stride;
      const Floats u = patch.u + static_cast<float>(k) * patch.du;
      Pixels pixels;
      look_up(p.loss, load(m.label + at), pixels);
      const Floats sum = load(m.sum + at), at_label = load(m.at_label + at), probability = at_label / sum;
      const Ints tiny = (probability < kLeastProbability) & pixels.valid;
      const Floats one = broadcast(1.0f), safe = tiny | ~pixels.valid ? one : minimum(one, probability);
      Floats negative_log = {}, log_sum = {};
      const bool needs_logarithm = kPass != Pass::kRegionGradient || p.loss.gamma > 0;
      if (needs_logarithm) negative_log = -log_of_positive(safe);
      if (needs_logarithm && (kSmoothed || bits(tiny))) {
        log_sum = log_of_positive(sum);
        if (bits(tiny)) {
          negative_log = negative_log_from_logits(place, pixels.label, u, v, reference, log_sum, tiny, negative_log);
        }
      }
      Floats weighted_here = {};
      if (kSmoothed) weighted_here = (weighted.at + u * weighted.dx) + v * (weighted.dy + u * weighted.dxy);
      const int64_t row_start = label_start + r * p.label_width;
      const Terms terms =
          pixel_terms(p.loss, pixels, sum, log_sum, negative_log, weighted_here, upstream_of(p, row_start, column));
      row_loss += terms.loss * pixels.factor;
      write_losses(p, row_start, column, terms.loss);
      if (kPass == Pass::kRegionSums) store(m.coefficient + at, masked(1.0f / sum, pixels.valid));
      if (kPass == Pass::kRegionGradient) {
        store_region_terms(s, RegionGradient(p.region, n), pixels, terms, at, sum, at_label, u);
      }
      if (kPass == Pass::kGradient) {
        store(m.coefficient + at, terms.coefficient);
        store(m.coefficient_high + at, terms.coefficient * u);
        store(m.at_label + at, at_label - terms.label_term);
      }
      if (kPass == Pass::kGradient || kPass == Pass::kRegionGradient) {
        if (kSmoothed) {
          const Floats right = terms.smooth * u;
          smooth[0] += terms.smooth;
          smooth[1] += v * terms.smooth;
          smooth[2] += right;
          smooth[3] += v * right;
        }
      }
    }
    total += __builtin_convertvector(row_loss, Doubles);
  }
  return total;
}

// All stages for one vector of patches of image n, in output rows from y on. labels: as in gather_labels. reference:
// the largest corner. Adds the gradient to low[0], low[1], high[0] and high[1], or the sums of regions to s.region.
// Returns false, without having done anything, if a lane is steep.
template <bool kSmoothed, Pass kPass>
bool run_patch(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, int64_t label_start,
               const uint16_t* labels, const Place& place, const Patch& patch, Floats reference, int64_t slot,
               float* const* low, float* const* high, Doubles* total) {
  const PatchMemory& m = s.patch;
  if (!gather_labels(m, s.classes, place, patch, labels, p.label_width + 1)) {
    for (int r = 0; r < patch.rows; ++r) {
      for (int k = 0; k < patch.phases; ++k) {
        write_losses(p, label_start + r * p.label_width, place.column + k * place.phase_stride, Floats{});
      }
    }
    return true;
  }
  WeightedLogits weighted = {};
  if (compute_sequences<kSmoothed>(p.loss, place, s.classes, patch, reference, s.sequences, &weighted)) return false;
  with_size(patch, [&]<int kRows, int kPhases>() {
    if constexpr (kPass == Pass::kRegionGradient) {
      const float* b = RegionGradient(p.region, n).of_prediction;
      constexpr int kHalf = (kRows + 1) / 2;
      add_exponentials_and_dots<0, kHalf, kPhases>(s, b);
      if constexpr (kRows > 1) add_exponentials_and_dots<kHalf, kRows - kHalf, kPhases>(s, b);
    } else {
      add_exponentials<kRows, kPhases>(s);
    }
  });
  Floats smooth[4] = {};
  *total += finish_pixels<kSmoothed, kPass>(p, s, n, place, patch, label_start, reference, weighted, smooth);
  with_size(patch, [&]<int kRows, int kPhases>() {
    if constexpr (kPass == Pass::kGradient) {
      add_gradient<kRows, kPhases, kSmoothed>(p.loss, s, place, patch, smooth, slot, low, high);
    } else if constexpr (kPass == Pass::kRegionSums) {
      add_probabilities<kRows, kPhases>(s);
    } else if constexpr (kPass == Pass::kRegionGradient) {
      add_region_gradient<kRows, kPhases, kSmoothed>(p.loss, s, RegionGradient(p.region, n), place, patch, smooth, slot,
                                                     low, high);
    }
  });
  return true;
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
