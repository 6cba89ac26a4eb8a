// Products of many tokens with the rows of one expert, in float32, on rows where they lie: nothing is packed or copied.
#pragma once
#include <cstring>

#include "call.h"

namespace {

using namespace thrifty;

constexpr int64_t kLanes = VECTOR_BYTES / 4;
constexpr int kTokens = 3, kPairs = 2;  // of a tile: 3 tokens x 2 rows of gate and 2 of up fill 12 of 16 registers
constexpr int kBlock = 2 * kTokens;     // tokens that meet the same rows while these are in the nearest cache
constexpr int kRows = 6;                // of a tile of the output: 6 tokens x 2 vectors
typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));

inline Vector load(const float* from) {
  Vector result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

inline void store(float* to, Vector from) { std::memcpy(to, &from, sizeof from); }

// Halves are added until four numbers are left.
typedef float Four __attribute__((vector_size(16)));
#if VECTOR_BYTES == 64
typedef float Eight __attribute__((vector_size(32)));
#endif

inline float sum_of_four(const Four& x) { return (x[0] + x[2]) + (x[1] + x[3]); }

template <class Whole, class Half>
Half halved(const Whole& x) {
  Half parts[2];
  std::memcpy(parts, &x, sizeof x);
  return parts[0] + parts[1];
}

inline float sum(const Vector& x) {
#if VECTOR_BYTES == 64
  return sum_of_four(halved<Eight, Four>(halved<Vector, Eight>(x)));
#elif VECTOR_BYTES == 32
  return sum_of_four(halved<Vector, Four>(x));
#else
  return sum_of_four(x);
#endif
}

// exp within 2 units of the last place, for |x| < 87 and cut off there (Cody and Waite's reduction, a polynomial).
inline Vector exponential(Vector x) {
  const Vector low = Vector{} - 87.0f, high = Vector{} + 87.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  Vector scaled = x * 1.44269504088896f;
  Integers whole = __builtin_convertvector(scaled + (scaled < Vector{} ? Vector{} - 0.5f : Vector{} + 0.5f), Integers);
  Vector n = __builtin_convertvector(whole, Vector);
  Vector r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = Vector{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Integers bits = (whole + 127) << 23;
  Vector power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline Vector activated_vector(Vector x, int64_t activation) {
  if (activation == kSilu) return x / (1.0f + exponential(-x));
  Vector inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(-2.0f * inner));
}

// Sums of `tokens` x `rows` products of rows of length `width`. Tiles at the edge name one row several times.
inline void tile(const float* const* x, const float* const* rows, int64_t width, float (*found)[2 * kPairs]) {
  Vector sums[kTokens][2 * kPairs] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Vector left[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) left[t] = load(x[t] + i);
#pragma GCC unroll 8
    for (int r = 0; r < 2 * kPairs; ++r) {
      Vector right = load(rows[r] + i);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sums[t][r] += left[t] * right;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 8
    for (int r = 0; r < 2 * kPairs; ++r) {
      found[t][r] = sum(sums[t][r]);
      for (int64_t j = i; j < width; ++j) found[t][r] += x[t][j] * rows[r][j];
    }
}

inline void hidden(const Call& call, const Group& group, int64_t begin, int64_t end) {
  const float *gate = static_cast<const float*>(call.gate), *up = static_cast<const float*>(call.up);
  const float* gate_bias = static_cast<const float*>(call.gate_bias);
  const float* up_bias = static_cast<const float*>(call.up_bias);
  const int step = gate ? kPairs : 2 * kPairs;
  float opened[kBlock][kChannels + kLanes] = {}, raised[kBlock][kChannels + kLanes] = {};
  for (int64_t first = group.first; first < group.last; first += kBlock) {
    const float* x[kBlock];
    int count = group.last - first < kBlock ? static_cast<int>(group.last - first) : kBlock;
    for (int t = 0; t < kBlock; ++t) x[t] = call.x + group.order[first + (t < count ? t : count - 1)] * call.width;
    for (int64_t channel = begin; channel < end; channel += step) {
      const float* rows[2 * kPairs];
      int64_t numbers[2 * kPairs];
      for (int r = 0; r < step; ++r) {
        numbers[r] = group.channels[channel + r < end ? channel + r : end - 1];
        rows[r] = up + numbers[r] * call.width;
        if (gate) rows[kPairs + r] = gate + numbers[r] * call.width;
      }
      for (int part = 0; part < count; part += kTokens) {
        float found[kTokens][2 * kPairs];
        tile(x + part, rows, call.width, found);
        for (int t = 0; t < kTokens; ++t)
          for (int r = 0; r < step; ++r) {
            int64_t at = channel + r - begin;
            raised[part + t][at] = found[t][r] + (up_bias ? up_bias[numbers[r]] : 0.0f);
            if (gate) opened[part + t][at] = found[t][kPairs + r] + (gate_bias ? gate_bias[numbers[r]] : 0.0f);
          }
      }
    }
    for (int t = 0; t < count; ++t) {
      for (int64_t i = 0; i < end - begin; i += kLanes) {
        Vector value = load(raised[t] + i);
        value = gate ? activated_vector(load(opened[t] + i), call.activation) * value
                     : activated_vector(value, call.activation);
        store(raised[t] + i, value);
      }
      std::memcpy(group.hidden + (first + t) * group.stride + begin, raised[t], (end - begin) * sizeof(float));
    }
  }
}

inline void output(const Call& call, const Group& group, int64_t begin, int64_t end) {
  const float* down = static_cast<const float*>(call.down);
  int64_t width = call.width;
  for (int64_t column = begin; column < end; column += 2 * kLanes) {
    bool is_whole = column + 2 * kLanes <= end;
    for (int64_t first = group.first; first < group.last; first += kRows) {
      const float* from[kRows];
      for (int t = 0; t < kRows; ++t) {
        int64_t at = first + t < group.last ? first + t : group.last - 1;
        from[t] = group.hidden + at * group.stride;
      }
      float result[kRows][2 * kLanes] = {};
      if (is_whole) {
        Vector sums[kRows][2] = {};
        for (int64_t k = 0; k < group.count; ++k) {
          const float* row = down + group.channels[k] * width + column;
          Vector low = load(row), high = load(row + kLanes);
#pragma GCC unroll 8
          for (int t = 0; t < kRows; ++t) {
            float factor = from[t][k];
            sums[t][0] += factor * low;
            sums[t][1] += factor * high;
          }
        }
#pragma GCC unroll 8
        for (int t = 0; t < kRows; ++t) store(result[t], sums[t][0]), store(result[t] + kLanes, sums[t][1]);
      } else {
        for (int64_t k = 0; k < group.count; ++k)
          for (int t = 0; t < kRows; ++t)
            for (int64_t i = 0; i < end - column; ++i)
              result[t][i] += from[t][k] * down[group.channels[k] * width + column + i];
      }
      int64_t size = is_whole ? 2 * kLanes : end - column;
      for (int t = 0; t < kRows && first + t < group.last; ++t) {
        float* to = call.out + group.order[first + t] * width + column;
        const float* bias = static_cast<const float*>(call.out_bias);
        for (int64_t i = 0; i < size; ++i) to[i] = result[t][i] + (bias ? bias[column + i] : 0.0f);
      }
    }
  }
}

}  // namespace
