// Registers the operators of csrc/cuda/ for CPU tensors, by emulation, as torch.ops.cawa_fast_cuda_emulation.
#include "../../csrc/cuda/cam_counts.cu"
#include "../../csrc/cuda/confusion_matrix.cu"
#include "../../csrc/cuda/cross_entropy.cu"
#include "../../csrc/cuda/label_counts.cu"
#include "../../csrc/cuda/library.h"
#include "../../csrc/cuda/resized_cross_entropy.cu"

CAWA_FAST_CUDA_LIBRARY(cawa_fast_cuda_emulation, CPU)
