// Sample positions of the bilinear resize, as F.interpolate(mode="bilinear") has them, laid out for vectors.
#pragma once

#include <cstdint>
#include <vector>

namespace cawa_fast {

constexpr int kBlock = 16;  // slots per block: the widest vector

// Along one axis output position i reads inputs low[i] and min(low[i] + 1, in_size - 1), with weights 1 - high_weight[i]
// and high_weight[i].
struct Taps {
  int64_t in_size, out_size;
  std::vector<int32_t> low;
  std::vector<float> high_weight;
};

Taps bilinear_taps(int64_t in_size, int64_t out_size, bool align_corners);

// Output columns by the cell that they fall into: between input columns s and s + 1. A vector then holds one output
// column of each of 16 neighbouring cells, all inputs are contiguous, and gradients need no scatter. The k-th output
// column of a cell is its phase k. When the width shrinks, cells without output columns would waste lanes: each output
// column is then a slot of its own that gathers its two inputs.
struct Cells {
  bool gathered;               // slots are output columns
  int64_t slots, blocks;       // blocks of 16 slots
  const int32_t *low, *high;   // per slot (16 * blocks): the input columns
  const int32_t* first_phase;  // per block and one more: where its phases start in the following
  const int32_t* column;       // per phase, 16 lanes: the output column, out_size for none
  const float* high_weight;    // per phase, 16 lanes
};

// Output rows that share their two input rows.
struct RowGroup {
  int32_t low, high;   // input rows
  int32_t begin, end;  // output rows
};
struct RowGroups {
  const RowGroup* groups;  // by output row, hence by low
  int64_t count;
  const float* high_weight;  // per output row
};

// Output columns in their order: 16 neighbours read inputs that lie close to each other.
struct Columns {
  int64_t width, padded;  // output columns; rounded up to 16 (the last column repeated)
  const int32_t* low;
  const float *low_weight, *high_weight;
};

// The memory behind Cells, Columns and RowGroups.
class CellTables {
 public:
  explicit CellTables(const Taps& taps);
  CellTables(const CellTables&) = delete;
  Cells cells;

 private:
  std::vector<int32_t> low_, high_, first_phase_, column_;
  std::vector<float> high_weight_;
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
  std::vector<float> high_weight_;
};

}  // namespace cawa_fast
