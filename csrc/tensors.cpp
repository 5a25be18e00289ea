#include "tensors.h"

namespace cawa_fast {

ResizeTables::ResizeTables(const Tensor& maps, const char* name, const Tensor& target, bool align_corners)
    : columns(bilinear_taps(maps.size(3), target.size(2), align_corners)),
      rows(bilinear_taps(maps.size(2), target.size(1), align_corners)),
      resize{maps_of(maps, name), maps.size(2) == target.size(1) && maps.size(3) == target.size(2), columns.columns,
             rows.groups} {}

}  // namespace cawa_fast
