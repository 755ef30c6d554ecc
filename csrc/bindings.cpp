// The one file that knows Python. Tensors arrive as addresses (tensor.data_ptr()) and sizes; the Python side in
// kernels/antiphon_kernels/native checks shapes, strides and dtypes before it calls. The GIL is released in every call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "isa.h"
#include "kernels.h"
#include "thread_pool.h"

namespace py = pybind11;
using namespace antiphon;

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native CPU operators of Antiphon; raw pointers in, raw pointers out.";
  m.def("isa", [] { return std::string(isa_name(active_isa())); }, "Name of the instruction set in use.");
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"));
}
