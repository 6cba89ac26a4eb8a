// Integer dot products on packed codes with AVX-512 VNNI and VBMI: 64 codes to an instruction, unpacked in registers.
//
// Keys: 16 tokens at a time, their rows transposed in units of 4 bytes, so that a lane is a token and its bytes are
// channels: no sum across lanes, and the query enters as a broadcast. Values: 4 tokens at a time, transposed in units
// of a byte, so that a lane is a channel and its bytes are tokens: the weights enter as a broadcast.
#pragma once
#include <immintrin.h>

#include "unit.h"

namespace {

using Wide = __m512i;

inline Wide shifted(Wide x, int bits) { return bits > 0 ? _mm512_srli_epi16(x, bits) : _mm512_slli_epi16(x, -bits); }

// Field f of packed codes, one code a byte. For 3 bits `high` has the high bits of byte j in its low half.
template <int BITS>
inline Wide field(Wide low, Wide high, int f) {
  if constexpr (BITS == 8) return low;
  if constexpr (BITS == 4) return _mm512_and_si512(f ? _mm512_srli_epi16(low, 4) : low, _mm512_set1_epi8(15));
  Wide two = f ? _mm512_srli_epi16(low, 2 * f) : low;
  if constexpr (BITS == 2) return _mm512_and_si512(two, _mm512_set1_epi8(3));
  Wide one = f == 2 ? high : shifted(high, f - 2);
  Wide both = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), two, one, 0xCA);
  return _mm512_and_si512(both, _mm512_set1_epi8(7));
}

// acc += four products of unsigned and signed bytes. Not the intrinsic: GCC 12 surrounds that with moves of registers.
inline void add_products(Wide& acc, Wide unsigned_bytes, Wide signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
}

template <int BITS>
constexpr int kFields = BITS == 8 ? 1 : BITS == 4 ? 2 : 4;

template <bool FULL>
inline __m128i load16(const uint8_t* from, __mmask16 mask) {
  if constexpr (FULL) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm_maskz_loadu_epi8(mask, from);
}

// 16 bytes of each of 4 rows.
template <bool FULL>
inline Wide load_rows(const uint8_t* from, int64_t stride, __mmask16 mask) {
  if (FULL && stride == 16) return _mm512_loadu_si512(from);
  asm("" : "+r"(from));  // or GCC keeps an address per row, on the stack
  Wide x = _mm512_castsi128_si512(load16<FULL>(from, mask));
  x = _mm512_inserti32x4(x, load16<FULL>(from + stride, mask), 1);
  x = _mm512_inserti32x4(x, load16<FULL>(from + 2 * stride, mask), 2);
  return _mm512_inserti32x4(x, load16<FULL>(from + 3 * stride, mask), 3);
}

// High bits of 3-bit codes: 8 bytes of each of 4 rows; half a byte goes to each byte of the low plane.
inline Wide load_high(const uint8_t* from, int64_t stride, __mmask16 mask) {
  Wide x = load_rows<false>(from, stride, mask & 0xff);
  x = _mm512_unpacklo_epi64(x, x);
  const Wide nibbles = _mm512_set_epi64(0x3c3834302c282420, 0x1c1814100c080400, 0x3c3834302c282420, 0x1c1814100c080400,
                                        0x3c3834302c282420, 0x1c1814100c080400, 0x3c3834302c282420, 0x1c1814100c080400);
  return _mm512_multishift_epi64_epi8(nibbles, x);
}

// Transpose 4 x 4 dwords of each lane: x[i] gets dword i of every row; row 4a + l of 16 is element 4l + a.
inline void transpose(Wide (&x)[4]) {
  Wide a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
  Wide c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm512_unpacklo_epi64(a, c), x[1] = _mm512_unpackhi_epi64(a, c);
  x[2] = _mm512_unpacklo_epi64(b, d), x[3] = _mm512_unpackhi_epi64(b, d);
}

inline void prefetch(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T0);
}

inline __mmask16 first_bytes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }

constexpr int kTiles = 2;  // of 16 tokens, treated together: more sums at a time, and each broadcast serves twice

template <int BITS, int HEADS>
struct Dot {
  static constexpr int F = kFields<BITS>, kSpan = BITS == 3 ? 16 : 4 * F;  // channels of a dword of a row
  __m512 sum[kTiles][HEADS];
  Wide acc[kTiles][HEADS];
  Wide low[kTiles][4], high[kTiles][4];

  explicit Dot(const Slot& slot) {
    for (int t = 0; t < kTiles; ++t)
      for (int h = 0; h < HEADS; ++h) sum[t][h] = _mm512_set1_ps(slot.base[h]), acc[t][h] = _mm512_setzero_si512();
  }

  template <bool FULL>
  inline void load(const uint8_t* codes, int64_t bytes, int64_t chunk, int64_t plane) {
    __mmask16 mask = first_bytes(plane - 16 * chunk), mask_high = first_bytes(plane / 2 - 8 * chunk);
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a) {
        const uint8_t* rows = codes + (16 * t + 4 * a) * bytes;
        asm("" : "+r"(rows));
        low[t][a] = load_rows<FULL>(rows + 16 * chunk, bytes, mask);
        if constexpr (BITS == 3) high[t][a] = load_high(rows + plane + 8 * chunk, bytes, mask_high);
      }
      transpose(low[t]);
      if constexpr (BITS == 3) transpose(high[t]);
    }
  }

  // Dword i of a chunk of every row against the channels that it holds.
  inline void add(int64_t chunk, int i, const Slot& slot) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) {
      Wide codes[kTiles];
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t) codes[t] = field<BITS>(low[t][i], high[t][i], f);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        int32_t four;
        std::memcpy(&four, &slot.folded[h][4 * ((4 * chunk + i) * F + f)], 4);
        const Wide query = _mm512_set1_epi32(four);
#pragma GCC unroll 2
        for (int t = 0; t < kTiles; ++t) add_products(acc[t][h], codes[t], query);
      }
    }
  }

  inline void flush(int64_t g, const Slot& slot) {
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t) {
        sum[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][h]), _mm512_set1_ps(slot.step[g][h]), sum[t][h]);
        acc[t][h] = _mm512_setzero_si512();
      }
  }

  inline void store(int64_t t0, Slot& slot) {
    const Wide order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t)
        _mm512_store_ps(slot.score[h] + t0 + 16 * t, _mm512_permutexvar_ps(order, sum[t][h]));
  }
};

template <int BITS, int HEADS>
void scores_of(const Call& call, const uint8_t* codes, Slot& slot) {
  using D = Dot<BITS, HEADS>;
  const int64_t bytes = row_bytes(call, call.k), plane = BITS == 3 ? call.dim / 4 : bytes;
  const int64_t dwords = plane / 4, each = call.group / D::kSpan;
  for (int64_t t = 0; t < call.tokens; t += 16 * kTiles, codes += 16 * kTiles * bytes) {
    prefetch(codes + kBatch * call.tokens * bytes, 16 * kTiles * bytes);
    D dot(slot);
    int64_t g = 0, left = each, chunk = 0;
    for (; 4 * chunk + 4 <= dwords; ++chunk) {
      dot.template load<true>(codes, bytes, chunk, plane);
      if (left >= 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) dot.add(chunk, i, slot);
        if ((left -= 4) == 0) dot.flush(g++, slot), left = each;
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          dot.add(chunk, i, slot);
          if (--left == 0) dot.flush(g++, slot), left = each;
        }
      }
    }
    if (4 * chunk < dwords) {
      dot.template load<false>(codes, bytes, chunk, plane);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        if (4 * chunk + i >= dwords) break;
        dot.add(chunk, i, slot);
        if (--left == 0) dot.flush(g++, slot), left = each;
      }
    }
    dot.store(t, slot);
  }
}

// Four tokens of a column of 64 channels: four times 16 channels, the bytes of a lane being the tokens.
template <int BITS>
struct Column {
  static constexpr int F = kFields<BITS>, kLoads = 4 / F;
  __mmask16 mask[kLoads], mask_high;
  bool full;

  Column(int64_t plane, int64_t column) {
    for (int z = 0; z < kLoads; ++z) mask[z] = first_bytes(std::fmax(plane - 16 * (kLoads * column + z), 0));
    mask_high = first_bytes(plane / 2 - 8 * column);
    full = plane >= 16 * kLoads * (column + 1);
  }

  template <bool FULL>
  inline void load(const uint8_t* row, const uint8_t* high_row, int64_t bytes, Wide (&codes)[4]) const {
    const Wide bytewise = _mm512_set_epi32(0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a,
                                           0x39291909, 0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404,
                                           0x33231303, 0x32221202, 0x31211101, 0x30201000);
#pragma GCC unroll 4
    for (int z = 0; z < kLoads; ++z) {
      Wide low = _mm512_permutexvar_epi8(bytewise, load_rows<FULL>(row + 16 * z, bytes, mask[z])), high{};
      if constexpr (BITS == 3) high = _mm512_permutexvar_epi8(bytewise, load_high(high_row, bytes, mask_high));
      if constexpr (BITS == 8) low = _mm512_xor_si512(low, _mm512_set1_epi8(-128));
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) codes[z * F + f] = field<BITS>(low, high, f);
    }
  }
};

// The group of lane i of part a of a column.
template <int BITS>
inline int64_t channel_of(int64_t column, int a, int i) {
  constexpr int F = kFields<BITS>;
  return 64 * column + a / F * 16 * F + F * i + a % F;
}

// A column of one group: one weight for all lanes.
template <int BITS, int HEADS, bool FULL>
void mix_column(const Call& call, const uint8_t* codes, int64_t column, int64_t g, const Slot& slot, Work& work) {
  const int64_t bytes = row_bytes(call, call.v), plane = BITS == 3 ? call.dim / 4 : bytes;
  const Column<BITS> part(plane, column);
  const uint8_t *row = codes + 16 * Column<BITS>::kLoads * column, *high = codes + plane + 8 * column;
  Wide acc[HEADS][4];
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) acc[h][a] = _mm512_setzero_si512();
  for (int64_t t = 0; t < call.tokens; t += 4, row += 4 * bytes, high += 4 * bytes) {
    Wide four[4];
    part.template load<FULL>(row, high, bytes, four);
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      int32_t weights;
      std::memcpy(&weights, &slot.weight[h][g][t], 4);
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a) add_products(acc[h][a], _mm512_set1_epi32(weights), four[a]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) {
      float* to = work.mixed[h] + 64 * column + 16 * a;
      __m512 step = _mm512_set1_ps(slot.weight_step[g][h]);
      _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[h][a]), step, _mm512_load_ps(to)));
    }
}

// A column of several groups: each lane picks the weight of its own.
template <int BITS, int HEADS, bool FULL>
void mix_groups(const Call& call, const uint8_t* codes, int64_t column, const Slot& slot, Work& work) {
  const int64_t bytes = row_bytes(call, call.v), plane = BITS == 3 ? call.dim / 4 : bytes;
  const int64_t end = 64 * (column + 1) < call.dim ? 64 * (column + 1) : call.dim;
  const int first = work.group_of[64 * column], last = work.group_of[end - 1];
  const Column<BITS> part(plane, column);
  const uint8_t *row = codes + 16 * Column<BITS>::kLoads * column, *high = codes + plane + 8 * column;
  alignas(64) int32_t index[4][16], words[16] = {};
  for (int a = 0; a < 4; ++a)
    for (int i = 0; i < 16; ++i) {
      int64_t c = channel_of<BITS>(column, a, i);
      index[a][i] = work.group_of[c < call.dim ? c : end - 1];
    }
  Wide acc[HEADS][4];
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) acc[h][a] = _mm512_setzero_si512();
  for (int64_t t = 0; t < call.tokens; t += 4, row += 4 * bytes, high += 4 * bytes) {
    Wide four[4];
    part.template load<FULL>(row, high, bytes, four);
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      Wide all;
      if (last == first + 1) {
        int32_t one, two;
        std::memcpy(&one, &slot.weight[h][first][t], 4);
        std::memcpy(&two, &slot.weight[h][last][t], 4);
        all = _mm512_mask_set1_epi32(_mm512_set1_epi32(one), static_cast<__mmask16>(1 << last), two);
      } else {
        for (int g = first; g <= last; ++g) std::memcpy(&words[g], &slot.weight[h][g][t], 4);
        all = _mm512_load_si512(words);
      }
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a)
        add_products(acc[h][a], _mm512_permutexvar_epi32(_mm512_load_si512(index[a]), all), four[a]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) {
      float* to = work.mixed[h] + 64 * column + 16 * a;
      Wide at = _mm512_slli_epi32(_mm512_load_si512(index[a]), 2);  // weight_step is [group][4]
      __m512 step = _mm512_i32gather_ps(at, slot.weight_step[0] + h, 4);
      _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[h][a]), step, _mm512_load_ps(to)));
    }
}

template <int BITS, int HEADS>
void mix_of(const Call& call, const uint8_t* codes, const Slot& slot, Work& work) {
  const int64_t block = call.tokens * row_bytes(call, call.v);
  prefetch(codes + kBatch * block, block);
  for (int64_t column = 0, c = 0; c < call.dim; ++column, c += 64) {
    const int64_t end = c + 64 < call.dim ? c + 64 : call.dim;
    const int g = work.group_of[c];
    if (work.group_of[end - 1] == g)
      c + 64 == end ? mix_column<BITS, HEADS, true>(call, codes, column, g, slot, work)
                    : mix_column<BITS, HEADS, false>(call, codes, column, g, slot, work);
    else
      c + 64 == end ? mix_groups<BITS, HEADS, true>(call, codes, column, slot, work)
                    : mix_groups<BITS, HEADS, false>(call, codes, column, slot, work);
  }
}

}  // namespace

#include "by_shape.h"
