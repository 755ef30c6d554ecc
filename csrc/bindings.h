// What the bindings share, the only files that know Python: tensors arrive as addresses (tensor.data_ptr()) and sizes; the Python side in
// kernels/antiphon_kernels/native checks shapes, strides and dtypes before it calls. The GIL is released in every call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace py = pybind11;
using namespace antiphon;

using Address = uintptr_t;
using Addresses = std::vector<Address>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// state: text_history, audio_history, history_len, text_ended, stop, speaks, limit.
inline StreamState stream_state(const Addresses& state, int64_t capacity) {
  return {at<int32_t>(state.at(0)), at<int32_t>(state.at(1)), capacity, at<int64_t>(state.at(2)),
          at<int64_t>(state.at(4)), at<bool>(state.at(3)), at<bool>(state.at(5)), at<int64_t>(state.at(6))};
}

// What is bound to weights once: convolutions, steps and passes.
void bind_networks(py::module_& m);
