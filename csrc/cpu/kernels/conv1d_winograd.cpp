// 1-D convolutions in float32 vectors by Winograd's minimal filtering (kernels.h, Winograd): half the products of conv1d.
//
// A tile's seven inputs d and a group's taps g are polynomials whose values at the points 1, -1, 2, -2, 1/4, -1/4 and
// infinity are multiplied and added over channels and groups; A turns the sums into the tile's results:
//   result[i] = sum_p p^i X_p(d) G_p(g), infinity for the last i alone,
//   G_p(g) = sum_j p^j g[j] / N_p(p), X_p(d) the coefficients of N_p(x) = prod_{q != p} (x - q) times d.
// Points in pairs of either sign, powers of two all, make A exact and cheap; errors stay within the bounds of the plain sum
// (tests/native/test_conv1d.py). S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, 2015.
//
// Every result depends on its place in its tile, and tiles start at time 0: neither threads nor batch change a bit.
#include "conv1d_vector.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kPoints = Winograd::kPoints;
constexpr int64_t kSpan = 192;      // tiles of a unit of work at most
constexpr int64_t kSpare = 24;      // tiles that the last products of a span may write behind it

// G: the values of n taps at the points, over N_p(p); infinity, the last tap of a whole group, is the caller's.
void weights_of(const float* taps, int64_t n, double (&value)[kPoints]) {
  constexpr double kAt[] = {1, -1, 2, -2, 0.25, -0.25};
  constexpr double kScale[] = {-5.625, 5.625, 47.25, -47.25, 1.845703125, -1.845703125};
  for (int p = 0; p < 6; ++p) {
    double sum = 0;
    for (int64_t j = n; j-- > 0;) sum = sum * kAt[p] + taps[j];
    value[p] = sum / kScale[p];
  }
}

// X: N of the points p and -p are (x + p) and (x - p) times prod (x^2 - q^2) of the two other pairs, e0 + e1 x^2 + x^4;
// infinity takes the product of all three.
void inputs_of(const vf (&d)[kPoints], vf (&x)[kPoints]) {
  const auto pair = [&](int p, float at, float e0, float e1) {
    const vf a = set1(e0), b = set1(e1);
    const vf even = fmadd(a, d[0], fmadd(b, d[2], d[4])), odd = fmadd(a, d[1], fmadd(b, d[3], d[5]));
    x[p] = fmadd(set1(at), even, odd);
    x[p + 1] = fmadd(set1(-at), even, odd);
  };
  pair(0, 1.0f, 0.25f, -4.0625f);
  pair(2, 2.0f, 0.0625f, -1.0625f);
  pair(4, 0.25f, 4.0f, -5.0f);
  x[6] = fmadd(set1(-5.0625f), d[4], fmadd(set1(4.3125f), d[2], fmadd(set1(-0.25f), d[0], d[6])));
}

// A, from sums over channels and groups.
template <int64_t kOutputs>
void results_of(const vf (&m)[kPoints], vf (&y)[kOutputs]) {
  const vf even[] = {add(m[0], m[1]), add(m[2], m[3]), add(m[4], m[5])};
  const vf odd[] = {sub(m[0], m[1]), sub(m[2], m[3]), sub(m[4], m[5])};
  float power = 1.0f;
  for (int64_t i = 0; i < kOutputs; ++i, power *= 2.0f) {
    const vf(&v)[3] = i % 2 ? odd : even;
    y[i] = i == 0 ? add(v[0], add(v[1], v[2])) : fmadd(set1(power), v[1], fmadd(set1(1.0f / (power * power)), v[2], v[0]));
  }
  y[kOutputs - 1] = add(y[kOutputs - 1], m[6]);
}

// One tile of VF channels: `sums` are `stride` elements apart, its first result is at `place` of the sheets, the next ones
// `apart` elements further; n of them exist.
template <int64_t kOutputs>
void end_tile(const ConvEnd& end, const float* sums, int64_t stride, int64_t place, int64_t apart, int64_t n) {
  vf m[kPoints], y[kOutputs];
  for (int64_t p = 0; p < kPoints; ++p) m[p] = load(sums + p * stride);
  results_of<kOutputs>(m, y);
  for (int64_t i = 0; i < min64(kOutputs, n); ++i) end(y[i], place + i * apart);
}

// Tiles [begin, begin + n) of up to 32 channels from `co` on; a point's sums are `stride` elements apart, 16 channels' all
// of the points'.
template <int64_t kOutputs>
void end_span(const WinogradConvArgs& a, const float* sums, int64_t stride, int64_t batch, int64_t co, int64_t begin,
              int64_t n) {
  const int64_t blocks = (a.out_channels + 15) / 16, dilation = a.shape.dilation;
  for (int64_t block = co / 16; block < min64(blocks, co / 16 + 2); ++block, sums += kPoints * stride)
    for (int64_t lane = 0; lane < 16; lane += VF) {
      const ConvEnd end{a.residual, a.total, a.out, load(a.bias + block * 16 + lane), set1(a.scale)};
      const int64_t sheet = (batch * blocks + block) * a.length * 16 + lane;
      int64_t tile = begin / dilation, phase = begin % dilation;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = tile * kOutputs * dilation + phase;
        end_tile<kOutputs>(end, sums + i * 16 + lane, stride, sheet + t * 16, dilation * 16,
                           (a.length - t + dilation - 1) / dilation);
        if (++phase == dilation) phase = 0, ++tile;
      }
    }
}

}  // namespace

void winograd_weight(const WinogradWeightArgs& a, int index, int count) {
  const int64_t in_blocks = (a.in_channels + 15) / 16, groups = a.shape.groups(), taps = a.shape.group_taps();
  const int64_t unit = 16 * kConvChannels, point = in_blocks * groups * unit;
  const Range range = partition((a.out_channels + 31) / 32 * in_blocks * groups, 1, index, count);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t group = i % groups, ci = i / groups % in_blocks * 16, block = i / groups / in_blocks;
    float* to = a.packed + block * kPoints * point + i % (in_blocks * groups) * unit;
    const int64_t held = min64(taps, a.shape.taps - group * taps);
    for (int64_t c = 0; c < 16; ++c)
      for (int64_t o = 0; o < kConvChannels; ++o) {
        const int64_t out = block * 32 + o;
        double value[kPoints] = {};
        if (ci + c < a.in_channels && out < a.out_channels) {
          const float* w = a.weight + (out * a.in_channels + ci + c) * a.shape.taps + group * taps;
          weights_of(w, held, value);
          value[6] = held == taps ? w[taps - 1] : 0.0f;
        }
        for (int64_t p = 0; p < kPoints; ++p) to[p * point + c * kConvChannels + o] = static_cast<float>(value[p]);
      }
  }
}

void winograd_input(const WinogradInputArgs& a, int, int) {
  const int64_t dilation = a.shape.dilation, left = (a.shape.taps - 1) / 2 * dilation, n = a.tiles.length;
  const int64_t spans = (n + kSpan - 1) / kSpan, units = a.rows.batch * a.rows.blocks() * spans;
  const int64_t plane = a.tiles.padded_length * 16;
  for (int64_t unit; (unit = a.next->fetch_add(1, std::memory_order_relaxed)) < units;) {
    const int64_t begin = unit % spans * kSpan, block = unit / spans % a.rows.blocks(), batch = unit / spans / a.rows.blocks();
    const float* rows = reinterpret_cast<const float*>(a.rows.row(batch, block, 0));
    float* to = reinterpret_cast<float*>(a.tiles.row(batch, block, 0));
    int64_t tile = begin / dilation, phase = begin % dilation;
    for (int64_t i = begin; i < min64(begin + kSpan, n); ++i) {
      const int64_t t = tile * a.shape.outputs() * dilation + phase - left;
      const bool inside = t >= 0 && t + (kPoints - 1) * dilation < a.rows.length;
      for (int64_t lane = 0; lane < 16; lane += VF) {
        vf d[kPoints], x[kPoints];
        for (int64_t j = 0; j < kPoints; ++j) {
          const int64_t at = t + j * dilation;
          d[j] = inside || (at >= 0 && at < a.rows.length) ? load(rows + at * 16 + lane) : set1(0.0f);
        }
        inputs_of(d, x);
        for (int64_t p = 0; p < kPoints; ++p) store(to + p * plane + i * 16 + lane, x[p]);
      }
      if (++phase == dilation) phase = 0, ++tile;
    }
  }
}

void winograd_conv1d(const WinogradConvArgs& a, int, int) {
  const ConvRows& rows = a.tiles;
  const int64_t tiles = a.shape.tiles(a.length), spans = (tiles + kSpan - 1) / kSpan, span = (tiles + spans - 1) / spans;
  const int64_t groups = a.shape.groups(), steps = rows.blocks() * groups, step = 16 * kConvChannels * sizeof(float);
  const int64_t chunk = kConvWeightBytes / step, stride = (span + kSpare) * 16;
  float* sums = static_cast<float*>(scratch(2 * kPoints * stride * sizeof(float)));
  int64_t offsets[kConvMaxSteps];
  for (int64_t g = 0; g < groups; ++g) offsets[g] = g * a.shape.dilation;
  const int64_t units = (a.out_channels + 31) / 32 * spans * rows.batch;
  for (int64_t unit; (unit = a.next->fetch_add(1, std::memory_order_relaxed)) < units;) {
    const int64_t begin = unit % spans * span, batch = unit / spans % rows.batch, block = unit / spans / rows.batch;
    ConvChunk c{nullptr, nullptr, nullptr, offsets, groups, 0, 0, min64(span, tiles - begin),
                min64(kConvChannels, a.out_channels - block * 32), 0, rows.padded_length * 64 * kPoints,
                (rows.blocks() - 1) * groups, rows.last_words(), sums, kPoints * stride};
    for (int64_t p = 0; p < kPoints; ++p, c.sums += stride) {
      c.input = rows.row(batch, 0, p) + begin * 64;
      c.weights = reinterpret_cast<const char*>(a.packed) + (block * kPoints + p) * steps * step;
      for (c.begin = 0; c.begin < steps; c.begin = c.end) {
        c.end = min64(steps, c.begin + chunk);
        vector_chunk<Singles<float>>(c);
      }
    }
    switch (a.shape.outputs()) {
      case 3: end_span<3>(a, sums, stride, batch, block * 32, begin, c.times); break;
      case 4: end_span<4>(a, sums, stride, batch, block * 32, begin, c.times); break;
      default: end_span<5>(a, sums, stride, batch, block * 32, begin, c.times);
    }
  }
}

}  // namespace antiphon::ANTIPHON_ISA
