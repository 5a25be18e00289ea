// The sum of the losses of all thread blocks of a cross-entropy kernel.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kSumThreads = 1024;

// Launched as one thread block of kSumThreads. Sums partial (count) in a fixed order into loss (). scale (C) only turns
// the result into NaN: the mean over no valid pixel is NaN, as in PyTorch, where scale[0] is NaN and 0 * NaN too.
static __global__ void __launch_bounds__(kSumThreads)
    sum_partial_losses(const double* partial, int count, const float* scale, float* loss) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double sum = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < count; i += kSumThreads) sum += partial[i];
  sum = sum_of_block(sum, reinterpret_cast<double*>(shared_memory));
  if (threadIdx.x == 0) *loss = static_cast<float>(sum + static_cast<double>(0.0f * scale[0]));
}

}  // namespace cawa_fast::cuda
