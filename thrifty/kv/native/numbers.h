// Numbers in 16 bits, and powers of two, without a branch, so that loops over them become vector code.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float from_half(uint32_t half) {
  uint32_t body = (half & 0x7fff) << 13;
  float x = body >= (0x7c00u << 13) ? from_bits(body | 0x7f800000) : from_bits(body) * from_bits(0x77800000);
  return half & 0x8000 ? -x : x;
}

inline float exp2_of(float x) {
  x = x < -126.f ? -126.f : x;
  float whole = (x + 12582912.f) - 12582912.f, r = x - whole;
  float y = 1.535336188e-4f;
  y = y * r + 1.339887440e-3f;
  y = y * r + 9.618437357e-3f;
  y = y * r + 5.550332471e-2f;
  y = y * r + 2.402264791e-1f;
  y = y * r + 6.931472029e-1f;
  y = y * r + 1.f;
  return y * from_bits(static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23);
}

}  // namespace
