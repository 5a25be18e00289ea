// Registers the operators of torch.ops.cawa_fast_cpu; ops.h documents them.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY(cawa_fast_cpu, m) {
  m.def(
      "confusion_matrix_labels(Tensor prediction, Tensor target, int num_classes, int ignore_index)"
      " -> (Tensor counts, Tensor bad)");
  m.def("confusion_matrix(Tensor input, Tensor target, int ignore_index, bool align_corners) -> Tensor");
  m.def(
      "cam_counts(Tensor cam, Tensor target, Tensor truth, float tau, int normalize, bool all_classes,"
      " int ignore_index, bool align_corners) -> (Tensor tp, Tensor fp, Tensor fn)");
  m.def("label_histogram(Tensor target, int num_classes, int ignore_index) -> (Tensor counts, Tensor bad)");
  m.def("bad_labels(Tensor target, int num_classes, int ignore_index) -> Tensor");
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, Tensor? offset, Tensor scale, int ignore_index,"
      " bool per_pixel, float label_smoothing, float gamma, bool align_corners, bool with_grad)"
      " -> (Tensor loss, Tensor grad)");
  m.def(
      "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? offset,"
      " Tensor scale, int ignore_index, float label_smoothing, float gamma, bool align_corners) -> Tensor");
  m.def(
      "region_sums(Tensor input, Tensor target, Tensor? weight, Tensor? offset, Tensor scale, int ignore_index,"
      " float label_smoothing, float gamma, bool squared, bool align_corners) -> (Tensor loss, Tensor sums)");
  m.def(
      "region_sums_backward(Tensor grad, Tensor grad_sums, Tensor input, Tensor target, Tensor? weight,"
      " Tensor? offset, Tensor scale, int ignore_index, float label_smoothing, float gamma, bool squared,"
      " bool align_corners) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(cawa_fast_cpu, CPU, m) {
  m.impl("confusion_matrix_labels", TORCH_BOX(&cawa_fast::confusion_matrix_labels));
  m.impl("confusion_matrix", TORCH_BOX(&cawa_fast::confusion_matrix));
  m.impl("cam_counts", TORCH_BOX(&cawa_fast::cam_counts));
  m.impl("label_histogram", TORCH_BOX(&cawa_fast::label_histogram));
  m.impl("bad_labels", TORCH_BOX(&cawa_fast::bad_labels));
  m.impl("cross_entropy", TORCH_BOX(&cawa_fast::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&cawa_fast::cross_entropy_backward));
  m.impl("region_sums", TORCH_BOX(&cawa_fast::region_sums));
  m.impl("region_sums_backward", TORCH_BOX(&cawa_fast::region_sums_backward));
}
