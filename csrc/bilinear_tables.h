// Classes that own and fill the tables of bilinear.h.
#pragma once

#include <vector>

#include "bilinear.h"

namespace cawa_fast {

// Positions along one axis. Output i interpolates between inputs low[i] and min(low[i] + 1, in_size - 1), with weights
// 1 - high_weight[i] and high_weight[i]; high_weight is in [0, 1]. `offset` is high_weight without the rounding of
// positions to float32. All vectors have out_size elements. The first `before` outputs lie before input 0.
struct Taps {
  int64_t in_size, out_size;
  std::vector<int32_t> low;
  std::vector<float> high_weight, offset;
  float step = 0;
  int32_t before = 0;
};

Taps bilinear_taps(int64_t in_size, int64_t out_size, bool align_corners);

class CellTables {
 public:
  explicit CellTables(const Taps& taps);
  CellTables(const CellTables&) = delete;
  Cells cells;

 private:
  std::vector<int32_t> low_, high_, first_phase_, column_;
  std::vector<float> high_weight_, offset_;
};

class ColumnTables {
 public:
  explicit ColumnTables(const Taps& taps);
  ColumnTables(const ColumnTables&) = delete;
  Columns columns;

 private:
  std::vector<int32_t> low_;
  std::vector<float> low_weight_, high_weight_;
};

class RowGroupTables {
 public:
  explicit RowGroupTables(const Taps& taps);
  RowGroupTables(const RowGroupTables&) = delete;
  RowGroups groups;

 private:
  std::vector<RowGroup> groups_;
  std::vector<float> high_weight_, offset_;
};

}  // namespace cawa_fast
