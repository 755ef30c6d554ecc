// Runs one csrc/cuda kernel on the CPU through cpu_exec.h: kernel name and sizes as arguments, inputs on stdin, outputs on stdout.
//   run_kernels alias_free_snake DTYPE lines channels length offset     stdin: x alpha inv_beta up down
//   run_kernels linear_int8 DTYPE ROWS branches num_rows split inputs outputs has_bias      stdin: x weight scale [bias]
//   run_kernels linear_int4 ...                                                             the same
// `offset` shifts x and out by that many elements, to leave 16-byte boundaries. Outputs lie between guard bands that are
// checked here.
#define ANTIPHON_CPU_EXEC
#include "alias_free_snake.cu"
#include "linear_int4.cu"
#include "linear_int8.cu"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

constexpr unsigned char kPoison = 0xA5;
constexpr size_t kGuard = 256;

// Bytes at a multiple of 16 plus `shift`, between guard bands.
struct Buffer {
  Buffer(size_t size, size_t shift = 0) : size(size), raw(size + shift + 2 * kGuard + 16, kPoison) {
    const auto base = reinterpret_cast<uintptr_t>(raw.data()) + kGuard;
    data = reinterpret_cast<unsigned char*>((base + 15) / 16 * 16 + shift);
  }
  Buffer& read() {
    if (std::fread(data, 1, size, stdin) != size) std::abort();
    return *this;
  }
  void write() const {
    for (const unsigned char* p = raw.data(); p < raw.data() + raw.size(); ++p) {
      if ((p < data || p >= data + size) && *p != kPoison) {
        std::fputs("a kernel wrote outside its output\n", stderr);
        std::exit(3);
      }
    }
    std::fwrite(data, 1, size, stdout);
  }
  template <class T>
  T* as() { return reinterpret_cast<T*>(data); }
  size_t size;
  std::vector<unsigned char> raw;
  unsigned char* data;
};

template <class T, class F>
void run_snake(F kernel, char** a) {
  const int lines = std::atoi(a[0]), channels = std::atoi(a[1]), length = std::atoi(a[2]), offset = std::atoi(a[3]);
  const size_t size = sizeof(T) * lines * length;
  Buffer x(size, offset * sizeof(T)), alpha(4 * channels), beta(4 * channels), up(48), down(48),
      out(size, offset * sizeof(T));
  for (Buffer* b : {&x, &alpha, &beta, &up, &down}) b->read();
  const unsigned blocks = lines * ((length + antiphon::kTile - 1) / antiphon::kTile);
  cpu_exec::launch(blocks, antiphon::kThreads, [&] {
    kernel(x.as<T>(), alpha.as<float>(), beta.as<float>(), up.as<float>(), down.as<float>(), out.as<T>(), channels, length);
  });
  out.write();
}

template <class T, class S, class F>
void run_linear(F kernel, char** a, int per_byte, bool scale_per_group) {
  const int branches = std::atoi(a[0]), rows = std::atoi(a[1]), split = std::atoi(a[2]), inputs = std::atoi(a[3]),
            outputs = std::atoi(a[4]), has_bias = std::atoi(a[5]);
  const size_t columns = size_t(branches) * outputs;
  Buffer x(sizeof(T) * rows * inputs), weight(columns * inputs / per_byte),
      scale(sizeof(S) * columns * (scale_per_group ? inputs / antiphon::kGroup : 1)), bias(has_bias ? sizeof(T) * columns : 0),
      out(sizeof(T) * rows * outputs);
  for (Buffer* b : {&x, &weight, &scale, &bias}) b->read();
  const unsigned blocks = branches * ((outputs + antiphon::kWarps - 1) / antiphon::kWarps);
  cpu_exec::launch(blocks, antiphon::kWarp * antiphon::kWarps, [&] {
    kernel(x.as<T>(), weight.data, scale.as<S>(), has_bias ? bias.as<T>() : nullptr, out.as<T>(), inputs, rows, split, inputs, outputs);
  });
  out.write();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::string kernel = argv[1], dtype = argv[2];
  char** rest = argv + 3;
  using antiphon::bfloat16;
  using antiphon::float16;
  const bool is_bf16 = dtype == "bfloat16";
  if (kernel == "alias_free_snake") {
    if (is_bf16) run_snake<bfloat16>(alias_free_snake_bfloat16, rest);
    else if (dtype == "float16") run_snake<float16>(alias_free_snake_float16, rest);
    else run_snake<float>(alias_free_snake_float32, rest);
    return 0;
  }
  const int most = std::atoi(rest++[0]);
  const bool int8 = kernel == "linear_int8";
#define RUN(ROWS)                                                                                                 \
  if (most == ROWS && int8 && is_bf16) run_linear<bfloat16, float>(linear_int8_bfloat16_##ROWS, rest, 1, false);  \
  if (most == ROWS && int8 && !is_bf16) run_linear<float16, float>(linear_int8_float16_##ROWS, rest, 1, false);   \
  if (most == ROWS && !int8 && is_bf16) run_linear<bfloat16, bfloat16>(linear_int4_bfloat16_##ROWS, rest, 2, true); \
  if (most == ROWS && !int8 && !is_bf16) run_linear<float16, bfloat16>(linear_int4_float16_##ROWS, rest, 2, true);
  RUN(1) RUN(4) RUN(8)
  return 0;
}
