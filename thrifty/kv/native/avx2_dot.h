// Integer dot products on packed codes with AVX2: products of unsigned and signed bytes are added up in 16 bits, and
// widened before those fill. The same two arrangements as in avx512_dot.h, with 8 tokens at a time. Codes of 8 bits
// count as two of 4 bits, since two products of full bytes do not fit 16 bits.
#pragma once
#include <immintrin.h>

#include "unit.h"

namespace {

using Wide = __m256i;

template <int BITS>
constexpr int kFields = BITS == 8 ? 1 : BITS == 4 ? 2 : 4;  // channels of a byte of a row

// Products of a weight (up to 255) and a code that fit 16 bits, in steps of 8 tokens.
template <int BITS>
constexpr int kSteps = BITS == 2 ? 16 : BITS == 3 ? 8 : 4;

template <int BITS>
inline Wide field(Wide low, Wide high, int f) {
  if constexpr (BITS == 4 || BITS == 8)
    return _mm256_and_si256(f ? _mm256_srli_epi16(low, 4) : low, _mm256_set1_epi8(15));
  Wide two = _mm256_and_si256(_mm256_srli_epi16(low, 2 * f), _mm256_set1_epi8(3));
  if constexpr (BITS == 2) return two;
  Wide one = _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(high, f), _mm256_set1_epi8(1)), 2);
  return _mm256_or_si256(two, one);
}

// Parts of a byte that are multiplied apart: its fields, or the halves of a code of 8 bits.
template <int BITS>
constexpr int kParts = BITS == 8 ? 2 : kFields<BITS>;

inline __m128i load_some(const uint8_t* from, int64_t count) {
  if (count >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  alignas(16) uint8_t bytes[16] = {};
  std::memcpy(bytes, from, count);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

// `count` bytes, up to 16, of a row and of the row four later.
inline Wide load_rows(const uint8_t* from, int64_t stride, int64_t count) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_some(from, count)), load_some(from + 4 * stride, count), 1);
}

// High bits of 3-bit codes: half a byte to each byte of the low plane.
inline Wide load_high(const uint8_t* from, int64_t stride, int64_t count) {
  const Wide twice = _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5,
                                      5, 6, 6, 7, 7);
  Wide x = _mm256_shuffle_epi8(load_rows(from, stride, count < 8 ? count : 8), twice);
  return _mm256_blendv_epi8(x, _mm256_srli_epi16(x, 4), _mm256_set1_epi16(-256));
}

// Bytes 16 * chunk .. of 8 rows, and the high bits of their codes.
template <int BITS>
inline void load_chunk(const uint8_t* rows, int64_t bytes, int64_t plane, int64_t chunk, Wide (&low)[4], Wide (&high)[4]) {
  for (int a = 0; a < 4; ++a) {
    low[a] = load_rows(rows + a * bytes + 16 * chunk, bytes, plane - 16 * chunk);
    if constexpr (BITS == 3) high[a] = load_high(rows + a * bytes + plane + 8 * chunk, bytes, plane / 2 - 8 * chunk);
  }
}

inline void transpose_dwords(Wide (&x)[4]) {
  Wide a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
  Wide c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm256_unpacklo_epi64(a, c), x[1] = _mm256_unpackhi_epi64(a, c);
  x[2] = _mm256_unpacklo_epi64(b, d), x[3] = _mm256_unpackhi_epi64(b, d);
}

inline void transpose_bytes(Wide (&x)[4]) {
  Wide a = _mm256_unpacklo_epi8(x[0], x[1]), b = _mm256_unpackhi_epi8(x[0], x[1]);
  Wide c = _mm256_unpacklo_epi8(x[2], x[3]), d = _mm256_unpackhi_epi8(x[2], x[3]);
  x[0] = _mm256_unpacklo_epi16(a, c), x[1] = _mm256_unpackhi_epi16(a, c);
  x[2] = _mm256_unpacklo_epi16(b, d), x[3] = _mm256_unpackhi_epi16(b, d);
}

// Sums in 16 bits of parts become sums in 32 bits of whole codes.
template <int BITS>
inline Wide widened(Wide first, Wide second) {
  Wide sum = _mm256_madd_epi16(first, _mm256_set1_epi16(1));
  if constexpr (BITS == 8) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(second, _mm256_set1_epi16(16)));
  return sum;
}

template <int BITS, int HEADS>
void scores_of(const Call& call, const uint8_t* codes, Slot& slot) {
  constexpr int F = kFields<BITS>;
  const int64_t bytes = row_bytes(call, call.k), plane = BITS == 3 ? call.dim / 4 : bytes, each = call.group / (4 * F);
  for (int64_t t = 0; t < call.tokens; t += 8, codes += 8 * bytes) {
    __m256 sum[HEADS];
    Wide acc[HEADS], part[HEADS][2];
    for (int h = 0; h < HEADS; ++h) sum[h] = _mm256_set1_ps(slot.base[h]), acc[h] = _mm256_setzero_si256();
    int64_t g = 0, left = each;
    for (int64_t chunk = 0; 16 * chunk < plane; ++chunk) {
      Wide low[4], high[4] = {};
      load_chunk<BITS>(codes, bytes, plane, chunk, low, high);
      transpose_dwords(low);
      if constexpr (BITS == 3) transpose_dwords(high);
      for (int h = 0; h < HEADS; ++h) part[h][0] = part[h][1] = _mm256_setzero_si256();
      for (int i = 0; i < 4 && 4 * chunk + i < plane / 4; ++i) {
#pragma GCC unroll 4
        for (int f = 0; f < kParts<BITS>; ++f) {
          const Wide some = field<BITS>(low[i], high[i], f);
          const int64_t place = 4 * ((4 * chunk + i) * F + (BITS == 8 ? 0 : f));
#pragma GCC unroll 4
          for (int h = 0; h < HEADS; ++h) {
            int32_t four;
            std::memcpy(&four, &slot.folded[h][place], 4);
            Wide& to = part[h][BITS == 8 ? f : 0];
            to = _mm256_add_epi16(to, _mm256_maddubs_epi16(some, _mm256_set1_epi32(four)));
          }
        }
        const bool ends = --left == 0;
        if (!ends && i < 3) continue;
        for (int h = 0; h < HEADS; ++h) {
          acc[h] = _mm256_add_epi32(acc[h], widened<BITS>(part[h][0], part[h][1]));
          part[h][0] = part[h][1] = _mm256_setzero_si256();
          if (!ends) continue;
          sum[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[h]), _mm256_set1_ps(slot.step[g][h]), sum[h]);
          acc[h] = _mm256_setzero_si256();
        }
        if (ends) ++g, left = each;
      }
    }
    for (int h = 0; h < HEADS; ++h) _mm256_store_ps(slot.score[h] + t, sum[h]);
  }
}

// Four bytes of every row, transposed: the sums of their 4 * F channels.
template <int BITS, int HEADS>
inline void mix_quarter(int64_t steps, const Wide (*low)[4], const Wide (*high)[4], int quarter, const Wide* weights,
                        const float* step, int64_t first, Work& work) {
  constexpr int F = kFields<BITS>, P = kParts<BITS>;
  Wide sum[HEADS][F] = {};
  for (int64_t begin = 0; begin < steps; begin += kSteps<BITS>) {
    const int64_t end = begin + kSteps<BITS> < steps ? begin + kSteps<BITS> : steps;
    Wide part[HEADS][P] = {};
    for (int64_t s = begin; s < end; ++s) {
#pragma GCC unroll 4
      for (int f = 0; f < P; ++f) {
        const Wide some = field<BITS>(low[s][quarter], high[s][quarter], f);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h)
          part[h][f] = _mm256_add_epi16(part[h][f], _mm256_maddubs_epi16(weights[h * (kMaxTokens / 8) + s], some));
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f)
        sum[h][f] = _mm256_add_epi32(sum[h][f], widened<BITS>(part[h][f], part[h][f + P - F]));
  }
  for (int h = 0; h < HEADS; ++h)
    for (int f = 0; f < F; ++f) {
      __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sum[h][f]), _mm256_extracti128_si256(sum[h][f], 1));
      float* to = work.mixed[h] + first + 4 * f;
      _mm_store_ps(to, _mm_fmadd_ps(_mm_cvtepi32_ps(both), _mm_set1_ps(step[h]), _mm_load_ps(to)));
    }
}

template <int BITS, int HEADS>
void mix_of(const Call& call, const uint8_t* codes, const Slot& slot, Work& work) {
  constexpr int F = kFields<BITS>;
  const int64_t bytes = row_bytes(call, call.v), plane = BITS == 3 ? call.dim / 4 : bytes, steps = call.tokens / 8;
  const Wide halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  Wide weights[HEADS][kMaxTokens / 8], low[kMaxTokens / 8][4], high[kMaxTokens / 8][4];
  int now = -1;
  for (int64_t chunk = 0; 16 * chunk < plane; ++chunk) {
    for (int64_t s = 0; s < steps; ++s) {
      load_chunk<BITS>(codes + 8 * s * bytes, bytes, plane, chunk, low[s], high[s]);
      transpose_bytes(low[s]);
      if constexpr (BITS == 3) transpose_bytes(high[s]);
    }
    for (int quarter = 0; quarter < 4 && 16 * chunk + 4 * quarter < plane; ++quarter) {
      const int64_t first = F * (16 * chunk + 4 * quarter);
      const int g = work.group_of[first];
      if (g != now) {
        now = g;
        for (int h = 0; h < HEADS; ++h)
          for (int64_t s = 0; s < steps; ++s) {
            const auto* from = reinterpret_cast<const __m128i*>(slot.weight[h][g] + 8 * s);
            weights[h][s] = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64(from)), halves);
          }
      }
      mix_quarter<BITS, HEADS>(steps, low, high, quarter, weights[0], slot.weight_step[g], first, work);
    }
  }
}

}  // namespace

#include "by_shape.h"
