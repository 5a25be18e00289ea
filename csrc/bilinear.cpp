#include <algorithm>
#include <cmath>

#include "bilinear_tables.h"

namespace cawa_fast {

Taps bilinear_taps(int64_t in_size, int64_t out_size, bool align_corners) {
  Taps taps;
  taps.in_size = in_size;
  taps.out_size = out_size;
  taps.low.resize(out_size);
  taps.high_weight.resize(out_size);
  taps.offset.resize(out_size);
  // As in PyTorch, the step is rounded to float, and the position is rounded once: the product of a float and i + 1/2
  // is exact in double.
  const double exact_step =
      align_corners ? static_cast<double>(in_size - 1) / static_cast<double>(std::max<int64_t>(out_size - 1, 1))
                    : static_cast<double>(in_size) / static_cast<double>(out_size);
  const double step = static_cast<float>(exact_step);
  taps.step = static_cast<float>(exact_step);
  for (int64_t i = 0; i < out_size; ++i) {
    const double exact = align_corners ? i * step : (i + 0.5) * step - 0.5;
    const float position = static_cast<float>(std::max(exact, 0.0));
    const auto low = std::min(static_cast<int64_t>(position), in_size - 1);
    taps.low[i] = static_cast<int32_t>(low);
    taps.high_weight[i] = std::clamp(position - static_cast<float>(low), 0.0f, 1.0f);
    const double without_rounding = align_corners ? i * exact_step : (i + 0.5) * exact_step - 0.5;
    if (without_rounding < 0) ++taps.before;
    taps.offset[i] = static_cast<float>(std::max(without_rounding, 0.0) - static_cast<double>(low));
  }
  return taps;
}

CellTables::CellTables(const Taps& taps) {
  const bool gathered = taps.out_size < taps.in_size;
  const int first = !gathered && taps.before > 0 ? -1 : 0;
  const int64_t slots = gathered ? taps.out_size : taps.in_size - first, blocks = (slots + kBlock - 1) / kBlock;
  for (int64_t slot = 0; gathered && slot < blocks * kBlock; ++slot) {
    low_.push_back(taps.low[std::min(slot, slots - 1)]);
    high_.push_back(static_cast<int32_t>(std::min<int64_t>(low_.back() + 1, taps.in_size - 1)));
  }
  const auto none = static_cast<int32_t>(taps.out_size);
  const auto slot_of = [&](int32_t output) -> int64_t {
    return gathered ? output : output < taps.before ? 0 : taps.low[output] - first;
  };
  int32_t next = 0;  // output column
  for (int64_t block = 0; block < blocks; ++block) {
    const size_t start = column_.size();
    first_phase_.push_back(static_cast<int32_t>(start / kBlock));
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      for (size_t at = start + lane; next < none && slot_of(next) == block * kBlock + lane; at += kBlock, ++next) {
        if (at >= column_.size()) {
          column_.resize(column_.size() + kBlock, none);
          high_weight_.resize(column_.size(), 0.0f);
          offset_.resize(column_.size(), 0.0f);
        }
        column_[at] = next;
        high_weight_[at] = taps.high_weight[next];
        offset_[at] = next < taps.before ? 0.0f : taps.offset[next];
      }
    }
  }
  first_phase_.push_back(static_cast<int32_t>(column_.size() / kBlock));
  cells = {gathered,
           first,
           slots,
           blocks,
           low_.data(),
           high_.data(),
           first_phase_.data(),
           column_.data(),
           high_weight_.data(),
           offset_.data(),
           taps.step};
}

ColumnTables::ColumnTables(const Taps& taps) : low_(taps.low), high_weight_(taps.high_weight) {
  const size_t padded = (taps.out_size + kBlock - 1) / kBlock * kBlock;
  low_.resize(padded, low_.back());
  high_weight_.resize(padded, high_weight_.back());
  for (const float weight : high_weight_) low_weight_.push_back(1 - weight);
  columns = {taps.out_size, static_cast<int64_t>(padded), low_.data(), low_weight_.data(), high_weight_.data()};
}

RowGroupTables::RowGroupTables(const Taps& taps) : high_weight_(taps.high_weight), offset_(taps.offset) {
  for (int32_t y = 0; y < static_cast<int32_t>(taps.out_size); ++y) {
    const int32_t low = taps.low[y];
    if (groups_.empty() || groups_.back().low != low) {
      groups_.push_back({low, static_cast<int32_t>(std::min<int64_t>(low + 1, taps.in_size - 1)), y, y});
    }
    groups_.back().end = y + 1;
  }
  groups = {groups_.data(), static_cast<int64_t>(groups_.size()), high_weight_.data(), offset_.data(), taps.step,
            taps.before};
}

}  // namespace cawa_fast
