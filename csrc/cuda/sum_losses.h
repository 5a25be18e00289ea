// The sum of the losses that the blocks of a cross-entropy kernel leave.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kSumThreads = 1024;

// Launched as one block of kSumThreads: the sum of all blocks' losses, in one order. 0 * NaN: the mean over no pixel is
// NaN, as in PyTorch.
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
