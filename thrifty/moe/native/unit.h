// The work itself in plain loops, which the compiler turns into vector code for the processor of the including file.
#pragma once
#include <cmath>
#include <cstring>

#include "call.h"

namespace {

using namespace thrifty;

inline float value(float x) { return x; }
inline float value(uint16_t x) {  // bfloat16
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline float activated(float x, int64_t activation) {
  if (activation == kSilu) return x / (1.0f + std::exp(-x));
  float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + std::tanh(inner));
}

template <class W>
float dot(const W* row, const float* x, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += value(row[i]) * x[i];
  return sum;
}

// Two rows at once, so that their sums do not wait for each other.
template <class W>
void dots(const W* one, const W* two, const float* x, int64_t size, float& first, float& second) {
  float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
  for (int64_t i = 0; i < size; ++i) {
    a += value(one[i]) * x[i];
    b += value(two[i]) * x[i];
  }
  first = a, second = b;
}

template <class W>
void add(float* out, const W* row, float factor, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] += factor * value(row[i]);
}

template <class W>
void typed_unit(const Call& call, const int32_t* active, int64_t first, int64_t last, float* out) {
  const W *gate = static_cast<const W*>(call.gate), *up = static_cast<const W*>(call.up);
  const W *down = static_cast<const W*>(call.down), *up_bias = static_cast<const W*>(call.up_bias);
  const W* gate_bias = static_cast<const W*>(call.gate_bias);
  for (int64_t at = first; at < last; ++at) {
    int64_t channel = active[at], row = channel * call.width;
    for (int64_t token = 0; token < call.tokens; ++token) {
      if (!call.members[call.choice[token] * call.stored + channel]) continue;
      const float* x = call.x + token * call.width;
      float hidden;
      if (gate) {
        float opened, raised;
        dots(gate + row, up + row, x, call.width, opened, raised);
        opened += gate_bias ? value(gate_bias[channel]) : 0.0f;
        raised += up_bias ? value(up_bias[channel]) : 0.0f;
        hidden = activated(opened, call.activation) * raised;
      } else {
        float raised = dot(up + row, x, call.width) + (up_bias ? value(up_bias[channel]) : 0.0f);
        hidden = activated(raised, call.activation);
      }
      add(out + token * call.width, down + row, hidden, call.width);
    }
  }
}

inline void route(const Call& call, int64_t first, int64_t last) {
  for (int64_t token = first; token < last; ++token) {
    const float* x = call.x + token * call.width;
    float best = 0;
    for (int64_t expert = 0; expert < call.experts; ++expert) {
      float sum = dot(call.router + expert * call.width, x, call.width);
      if (!expert || sum > best) best = sum, call.choice[token] = expert;
    }
  }
}

inline void unit(const Call& call, const int32_t* active, int64_t first, int64_t last, float* out) {
  if (call.type == kFloat32)
    typed_unit<float>(call, active, first, last, out);
  else
    typed_unit<uint16_t>(call, active, first, last, out);
}

}  // namespace
