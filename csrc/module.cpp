// cawa_fast._C: importing it registers the operators (library.cpp, by static initialisation); its only function says
// how it was built.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <sstream>
#include <string>

namespace py = pybind11;

namespace {

// "a,b" to ["a", "b"], "" to [].
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

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled operators of cawa_fast; importing this module registers torch.ops.cawa_fast_cpu.";
  m.def("build_info", &build_info, "How this extension was built; cawa_fast._native.build_info lists the keys.");
}
