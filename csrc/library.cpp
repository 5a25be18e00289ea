// Registration only; ops.h says what the operators do.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY(cawa_fast_cpu, m) {
  m.def(
      "confusion_matrix_labels(Tensor prediction, Tensor target, int num_classes, int ignore_index)"
      " -> (Tensor counts, Tensor bad)");
}

STABLE_TORCH_LIBRARY_IMPL(cawa_fast_cpu, CPU, m) {
  m.impl("confusion_matrix_labels", TORCH_BOX(&cawa_fast::confusion_matrix_labels));
}
