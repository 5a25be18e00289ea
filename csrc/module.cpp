// The Python module cawa_fast._C. Importing it registers the operators, by static initialisation in library.cpp. Its
// functions report how it was built and select the instruction set.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <sstream>
#include <string>
#include <vector>

#include "dispatch.h"
#include "ops.h"

namespace py = pybind11;

namespace {

// "a,b" becomes ["a", "b"]; "" becomes [].
py::list split(const char* comma_separated) {
  py::list words;
  std::istringstream text(comma_separated);
  for (std::string word; std::getline(text, word, ',');) words.append(word);
  return words;
}

std::string torch_target() {
  constexpr uint64_t version = TORCH_TARGET_VERSION;
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = CAWA_FAST_COMPILER;
  info["cxx_standard"] = __cplusplus / 100;
  info["build_type"] = CAWA_FAST_BUILD_TYPE;
  info["torch_target"] = torch_target();
  info["torch_headers"] = TORCH_VERSION;
  info["pybind11"] = CAWA_FAST_PYBIND11;
  info["instruction_sets"] = split(CAWA_FAST_INSTRUCTION_SETS);
  info["cuda_architectures"] = split(CAWA_FAST_CUDA_ARCHITECTURES);
  return info;
}

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  for (const cawa_fast::Kernels* set : cawa_fast::supported_kernels()) names.emplace_back(set->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled operators of cawa_fast; importing this module registers torch.ops.cawa_fast_cpu.";
  m.def("build_info", &build_info, "How this extension was built; cawa_fast._ops.native.build_info lists the keys.");
  m.def("supported_instruction_sets", &supported_instruction_sets, "Those of build and processor, best last.");
  m.def(
      "instruction_set", [] { return cawa_fast::kernels().name; },
      "The one that runs; ValueError if CAWA_FAST_CPU in the environment names none of the supported ones.");
  m.def("use_instruction_set", &cawa_fast::use_instruction_set, "Choose one, for tests and benchmarks.");
  m.def("release_gradient_memory", &cawa_fast::release_gradient_memory,
        "Free the memory of the last large gradient, which is kept for the next one.");
}
