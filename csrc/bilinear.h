// Sample positions of the bilinear resize, as F.interpolate(mode="bilinear") has them, laid out for vectors.
#pragma once

#include <cstdint>

namespace cawa_fast {

constexpr int kBlock = 16;  // slots per block: the widest vector

// Output columns by the cell that they fall into: between input columns s and s + 1. A vector then holds one output
// column of each of several neighbouring cells, all inputs are contiguous, and gradients need no scatter. The k-th
// output column of a cell is its phase k. When the width shrinks, cells without output columns would waste lanes: each
// output column is then a slot of its own that gathers its two inputs.
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

}  // namespace cawa_fast
