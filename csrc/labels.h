// Access to label maps of any integer dtype, and a tally of bad labels.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace cawa_fast {

// Calls body(pointer) with the data of `labels` as const uint8_t*, int16_t*, int32_t* or int64_t*.
template <class Body>
void with_label_data(const torch::stable::Tensor& labels, const char* name, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (labels.scalar_type()) {
    case ScalarType::Byte:
      return body(labels.const_data_ptr<uint8_t>());
    case ScalarType::Short:
      return body(labels.const_data_ptr<int16_t>());
    case ScalarType::Int:
      return body(labels.const_data_ptr<int32_t>());
    case ScalarType::Long:
      return body(labels.const_data_ptr<int64_t>());
    default:
      STD_TORCH_CHECK(false, name, " must be uint8, int16, int32 or int64, not ",
                      torch::headeronly::toString(labels.scalar_type()), "; convert it with .long()");
  }
}

// Number, minimum and maximum of the bad labels. The initial values stand for none.
struct BadLabels {
  int64_t count = 0;
  int64_t min = std::numeric_limits<int64_t>::max();
  int64_t max = std::numeric_limits<int64_t>::min();

  void note(int64_t value) { merge({1, value, value}); }

  void merge(const BadLabels& other) {
    count += other.count;
    min = std::min(min, other.min);
    max = std::max(max, other.max);
  }
};

}  // namespace cawa_fast
