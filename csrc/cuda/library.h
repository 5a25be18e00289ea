// Registration of the operators, which their own headers document.
#pragma once

#include <torch/csrc/stable/library.h>

#include "cam_counts.h"
#include "confusion_matrix.h"
#include "cross_entropy.h"
#include "label_counts.h"
#include "resized_cross_entropy.h"

// Registers torch.ops.<name> for tensors on the devices of `key`.
#define CAWA_FAST_CUDA_LIBRARY(name, key)                                                                             \
  STABLE_TORCH_LIBRARY(name, m) {                                                                                     \
    m.def(                                                                                                            \
        "cross_entropy(Tensor input, Tensor target, Tensor? weight, Tensor? offset, Tensor scale, int ignore_index,"  \
        " bool per_pixel, float label_smoothing, float gamma, bool with_grad) -> (Tensor loss, Tensor grad)");        \
    m.def(                                                                                                            \
        "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? offset,"            \
        " Tensor scale, int ignore_index, float label_smoothing, float gamma) -> Tensor");                            \
    m.def(                                                                                                            \
        "cross_entropy_rescale_(Tensor(a!) grad_input, Tensor grad, Tensor input, Tensor target, Tensor? weight,"     \
        " Tensor? offset, Tensor scale, int ignore_index, float label_smoothing, float gamma) -> ()");                \
    m.def("label_counts(Tensor target, int num_classes, int ignore_index, Tensor(a!)? report) -> Tensor");            \
    m.def(                                                                                                            \
        "label_scale(Tensor target, int num_classes, int ignore_index, Tensor? weight, int reduction,"                \
        " Tensor(a!)? report) -> Tensor");                                                                            \
    m.def(                                                                                                            \
        "resized_cross_entropy(Tensor input, Tensor target, Tensor? weight, Tensor? offset, Tensor scale,"            \
        " int ignore_index, bool per_pixel, float label_smoothing, float gamma, bool align_corners, bool save)"       \
        " -> (Tensor loss, Tensor statistics)");                                                                      \
    m.def(                                                                                                            \
        "resized_cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? offset,"    \
        " Tensor scale, Tensor statistics, int ignore_index, float label_smoothing, float gamma, bool align_corners)" \
        " -> Tensor");                                                                                                \
    m.def(                                                                                                            \
        "confusion_matrix(Tensor input, Tensor target, int ignore_index, bool align_corners, Tensor(a!)? report)"     \
        " -> Tensor");                                                                                                \
    m.def(                                                                                                            \
        "cam_counts(Tensor cam, Tensor target, Tensor truth, float tau, bool by_maximum, bool every_class,"           \
        " int ignore_index, bool align_corners) -> (Tensor tp, Tensor fp, Tensor fn)");                               \
  }                                                                                                                   \
  STABLE_TORCH_LIBRARY_IMPL(name, key, m) {                                                                           \
    m.impl("cross_entropy", TORCH_BOX(&cawa_fast::cuda::cross_entropy));                                              \
    m.impl("cross_entropy_backward", TORCH_BOX(&cawa_fast::cuda::cross_entropy_backward));                            \
    m.impl("cross_entropy_rescale_", TORCH_BOX(&cawa_fast::cuda::cross_entropy_rescale));                             \
    m.impl("cam_counts", TORCH_BOX(&cawa_fast::cuda::cam_counts));                                                    \
    m.impl("label_counts", TORCH_BOX(&cawa_fast::cuda::label_counts));                                                \
    m.impl("label_scale", TORCH_BOX(&cawa_fast::cuda::label_scale));                                                  \
    m.impl("resized_cross_entropy", TORCH_BOX(&cawa_fast::cuda::resized_cross_entropy));                              \
    m.impl("resized_cross_entropy_backward", TORCH_BOX(&cawa_fast::cuda::resized_cross_entropy_backward));            \
    m.impl("confusion_matrix", TORCH_BOX(&cawa_fast::cuda::confusion_matrix));                                        \
  }
