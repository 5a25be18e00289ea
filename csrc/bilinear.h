// Tables of the bilinear resize, laid out for vectors: the positions and weights of F.interpolate(mode="bilinear").
#pragma once

#include <cstdint>

namespace cawa_fast {

constexpr int kBlock = 16;  // slots per block: the widest vector

// Output columns grouped by cell. Cell s has the output columns that lie between input columns s and s + 1; its k-th
// output column is its phase k. A vector holds one phase of several neighbouring cells, so that all inputs are
// contiguous and gradients need no scatter. The output columns left of input column 0, which take its values, have a
// cell of their own, -1; those right of the last input column are in the last input column's cell. So within every cell
// the output columns are equally spaced.
//
// Slots are what a vector's lanes hold: cells from `first` on, or output columns if `gathered`. The latter is for a
// width that shrinks, where cells without output columns would waste lanes; each slot then gathers its two inputs.
struct Cells {
  bool gathered;               // slots are output columns, not cells
  int first;                   // the cell of slot 0: -1, or 0 if no output column lies left of input column 0
  int64_t slots, blocks;       // blocks of kBlock slots; the last slot repeats to fill its block
  const int32_t *low, *high;   // (blocks * kBlock): the input columns of each slot, in [0, in_size), if `gathered`
  const int32_t* first_phase;  // (blocks + 1): where each block's phases start in the next two arrays
  const int32_t* column;       // (phases, kBlock): the output column in [0, out_size), or out_size for none
  const float* high_weight;    // (phases, kBlock): the weight in [0, 1] of the input column `high`
  // The same without the rounding of positions to float32, in which PyTorch's weights are off by up to a rounding error
  // of the position. 0 for the output columns left of input column 0.
  const float* offset;  // (phases, kBlock)
  float step;           // between neighbouring output columns, in input columns
};

// The output rows that interpolate between the same two input rows.
struct RowGroup {
  int32_t low, high;   // input rows in [0, in_size)
  int32_t begin, end;  // output rows [begin, end)
};
struct RowGroups {
  const RowGroup* groups;  // (count), in the order of output rows, hence of `low`
  int64_t count;
  const float* high_weight;  // (out_size): the weight in [0, 1] of input row `high` in each output row
  const float* offset;       // (out_size): the same without the rounding of positions to float32
  float step;                // between neighbouring output rows, in input rows
  int32_t before;            // the first output rows, those above input row 0, all in group 0
};

// Output columns in their order. 16 neighbours read inputs that are close to each other.
struct Columns {
  int64_t width, padded;                  // output columns; rounded up to 16, repeating the last column
  const int32_t* low;                     // (padded): the left input column
  const float *low_weight, *high_weight;  // (padded): weights in [0, 1] of input columns low and low + 1
};

}  // namespace cawa_fast
