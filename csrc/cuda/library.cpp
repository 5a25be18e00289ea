#include "library.h"

CAWA_FAST_CUDA_LIBRARY(cawa_fast_cuda, CUDA)
