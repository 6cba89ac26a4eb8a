// The variant for AVX-512 with VNNI and VBMI: 64 codes to an integer dot product, unpacked in registers.
//
// Keys: 16 tokens at a time, their rows transposed in units of 4 bytes, so that a lane is a token and its bytes are
// channels: no sum across lanes, and the query enters as a broadcast. Values: 4 tokens at a time, transposed in units
// of a byte, so that a lane is a channel and its bytes are tokens: the weights enter as a broadcast.
#if defined(__x86_64__)
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

inline __mmask16 first_bytes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }

inline __m512 load_floats(const uint8_t* from, int64_t type, int64_t i) {
  if (type == kFloat32) return _mm512_loadu_ps(from + 4 * i);
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * i));
  if (type == kFloat16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512 exp2_of(__m512 x) {
  __m512 r = _mm512_sub_ps(x, _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  __m512 y = _mm512_set1_ps(1.339887440e-3f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(9.618437357e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.550332471e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.402264791e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.931472029e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(y, _mm512_sub_ps(x, r));
}

inline __m512 inverse_of(__m512 x) {
  __m512 y = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.f)));
}

// The largest element of each of four vectors, and their sums.
inline __m128 max_of_each(const __m512 (&x)[4]) {
  __m512 a = _mm512_max_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  __m512 b = _mm512_max_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  __m512 c = _mm512_max_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  __m256 d = _mm256_max_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
  return _mm_max_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

inline __m128 sum_of_each(const __m512 (&x)[4]) {
  __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
  return _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

template <int BITS, int HEADS>
struct Dot {
  static constexpr int F = kFields<BITS>, kSpan = BITS == 3 ? 16 : 4 * F;  // channels of a dword of a row
  __m512 sum[HEADS];
  Wide acc[HEADS];

  // Dword i of 16 rows against the channels that it holds.
  inline void add(Wide low, Wide high, int64_t i, const Work& work) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) {
      Wide codes = field<BITS>(low, high, f);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        int32_t four;
        std::memcpy(&four, &work.folded[h][4 * (i * F + f)], 4);
        acc[h] = _mm512_dpbusd_epi32(acc[h], codes, _mm512_set1_epi32(four));
      }
    }
  }

  inline void flush(int64_t g, const Work& work) {
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      sum[h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[h]), _mm512_set1_ps(work.step[g][h]), sum[h]);
      acc[h] = _mm512_setzero_si512();
    }
  }
};

template <int BITS, bool FULL>
inline void load_keys(const uint8_t* codes, int64_t bytes, int64_t chunk, int64_t plane, Wide (&low)[4], Wide (&high)[4]) {
  __mmask16 mask = first_bytes(plane - 16 * chunk), mask_high = first_bytes(plane / 2 - 8 * chunk);
#pragma GCC unroll 4
  for (int a = 0; a < 4; ++a) {
    low[a] = load_rows<FULL>(codes + 16 * chunk + 4 * a * bytes, bytes, mask);
    if constexpr (BITS == 3) high[a] = load_high(codes + plane + 8 * chunk + 4 * a * bytes, bytes, mask_high);
  }
  transpose(low);
  if constexpr (BITS == 3) transpose(high);
}

template <int BITS, int HEADS>
void scores_of(const Call& call, const uint8_t* codes, Work& work) {
  using D = Dot<BITS, HEADS>;
  const int64_t bytes = row_bytes(call, call.k), plane = BITS == 3 ? call.dim / 4 : bytes;
  const int64_t dwords = plane / 4, each = call.group / D::kSpan;
  const Wide order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  for (int64_t t = 0; t < call.tokens; t += 16, codes += 16 * bytes) {
    D dot;
    for (int h = 0; h < HEADS; ++h) dot.sum[h] = _mm512_set1_ps(work.base[h]), dot.acc[h] = _mm512_setzero_si512();
    Wide low[4], high[4];
    int64_t g = 0, left = each, chunk = 0;
    for (; 4 * chunk + 4 <= dwords; ++chunk) {
      load_keys<BITS, true>(codes, bytes, chunk, plane, low, high);
      if (left >= 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) dot.add(low[i], high[i], 4 * chunk + i, work);
        if ((left -= 4) == 0) dot.flush(g++, work), left = each;
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          dot.add(low[i], high[i], 4 * chunk + i, work);
          if (--left == 0) dot.flush(g++, work), left = each;
        }
      }
    }
    if (4 * chunk < dwords) {
      load_keys<BITS, false>(codes, bytes, chunk, plane, low, high);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        if (4 * chunk + i >= dwords) break;
        dot.add(low[i], high[i], 4 * chunk + i, work);
        if (--left == 0) dot.flush(g++, work), left = each;
      }
    }
    for (int h = 0; h < HEADS; ++h)
      _mm512_store_ps(work.score[h] + t, _mm512_permutexvar_ps(order, dot.sum[h]));
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

template <int BITS, int HEADS, bool FULL>
void mix_column(const Call& call, const uint8_t* codes, int64_t column, Work& work) {
  const int64_t bytes = row_bytes(call, call.v), plane = BITS == 3 ? call.dim / 4 : bytes;
  const Column<BITS> part(plane, column);
  const uint8_t *row = codes + 16 * Column<BITS>::kLoads * column, *high = codes + plane + 8 * column;
  Wide acc[HEADS][4] = {}, four[4];
  const int64_t g = 64 * column / call.group, last = 64 * (column + 1) < call.dim ? 64 * (column + 1) : call.dim;
  if (last <= (g + 1) * call.group) {
    for (int64_t t = 0; t < call.tokens; t += 4) {
      part.template load<FULL>(row + t * bytes, high + t * bytes, bytes, four);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        int32_t weights;
        std::memcpy(&weights, &work.weight[h][g][t], 4);
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) acc[h][a] = _mm512_dpbusd_epi32(acc[h][a], _mm512_set1_epi32(weights), four[a]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a) {
        float* to = work.mixed[h] + 64 * column + 16 * a;
        __m512 step = _mm512_set1_ps(work.weight_step[g][h]);
        _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[h][a]), step, _mm512_load_ps(to)));
      }
    return;
  }
  alignas(64) int32_t index[4][16];
  for (int a = 0; a < 4; ++a)
    for (int i = 0; i < 16; ++i) {
      int64_t c = channel_of<BITS>(column, a, i);
      index[a][i] = work.group_of[c < call.dim ? c : 64 * column];
    }
  alignas(64) int32_t words[16] = {};
  for (int64_t t = 0; t < call.tokens; t += 4) {
    part.template load<FULL>(row + t * bytes, high + t * bytes, bytes, four);
    for (int h = 0; h < HEADS; ++h) {
      for (int64_t one = g; one * call.group < last; ++one) std::memcpy(&words[one], &work.weight[h][one][t], 4);
      Wide all = _mm512_load_si512(words);
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a)
        acc[h][a] = _mm512_dpbusd_epi32(acc[h][a], _mm512_permutexvar_epi32(_mm512_load_si512(index[a]), all), four[a]);
    }
  }
  for (int h = 0; h < HEADS; ++h)
    for (int a = 0; a < 4; ++a) {
      float* to = work.mixed[h] + 64 * column + 16 * a;
      Wide at = _mm512_slli_epi32(_mm512_load_si512(index[a]), 2);  // weight_step is [group][4]
      __m512 step = _mm512_i32gather_ps(at, work.weight_step[0] + h, 4);
      _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[h][a]), step, _mm512_load_ps(to)));
    }
}

template <int BITS, int HEADS>
void mix_of(const Call& call, const uint8_t* codes, Work& work) {
  for (int64_t column = 0; 64 * column < call.dim; ++column)
    if (64 * (column + 1) <= call.dim)
      mix_column<BITS, HEADS, true>(call, codes, column, work);
    else
      mix_column<BITS, HEADS, false>(call, codes, column, work);
}

template <template <int, int> class Part, int BITS>
void by_heads(const Call& call, int heads, const uint8_t* codes, Work& work) {
  if (heads == 1) return Part<BITS, 1>::run(call, codes, work);
  if (heads == 2) return Part<BITS, 2>::run(call, codes, work);
  if (heads == 3) return Part<BITS, 3>::run(call, codes, work);
  return Part<BITS, 4>::run(call, codes, work);
}

template <template <int, int> class Part>
void by_bits(const Call& call, int64_t bits, int heads, const uint8_t* codes, Work& work) {
  if (bits == 2) return by_heads<Part, 2>(call, heads, codes, work);
  if (bits == 3) return by_heads<Part, 3>(call, heads, codes, work);
  if (bits == 4) return by_heads<Part, 4>(call, heads, codes, work);
  return by_heads<Part, 8>(call, heads, codes, work);
}

template <int BITS, int HEADS>
struct Scores {
  static void run(const Call& call, const uint8_t* codes, Work& work) { scores_of<BITS, HEADS>(call, codes, work); }
};
template <int BITS, int HEADS>
struct Mix {
  static void run(const Call& call, const uint8_t* codes, Work& work) { mix_of<BITS, HEADS>(call, codes, work); }
};

struct Avx512 : Plain {
  static constexpr float kOffset = 128;

  static void fetch(const uint8_t*, int64_t, const uint8_t*, int64_t) {}

  static void widen(const uint8_t* from, int64_t type, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 16) _mm512_storeu_ps(to + i, load_floats(from, type, i));
  }

  static int64_t place(int64_t bits, int64_t c) {
    int64_t in = c % 64;
    if (bits == 8) return c;
    if (bits == 4) return c - in + in / 32 * 32 + in % 2 * 16 + in % 32 / 2;
    return c - in + in % 4 * 16 + in / 4;
  }

  template <class V>
  static void fold(const Call& call, int heads, const uint8_t* scale, const uint8_t* low, Work& work) {
    if (heads == 1) return fold_heads<1>(call, scale, low, work);
    if (heads == 2) return fold_heads<2>(call, scale, low, work);
    if (heads == 3) return fold_heads<3>(call, scale, low, work);
    return fold_heads<4>(call, scale, low, work);
  }

  template <int HEADS>
  static void fold_heads(const Call& call, const uint8_t* scale, const uint8_t* low, Work& work) {
    const __m512 middle = _mm512_set1_ps(((1 << call.k.bits) - 1) * 0.5f);
    const __m128i fields = call.k.bits == 8   ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
                           : call.k.bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                              : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 base[4] = {}, rounded[4] = {};
    for (int64_t g = 0, first = 0; first < call.dim; ++g, first += call.group) {
      __m512 most[4] = {};
      for (int64_t c = first; c < first + call.group; c += 16) {
        __m512 s = load_floats(scale, call.type, c);
        __m512 l = _mm512_fmadd_ps(middle, s, load_floats(low, call.type, c));
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          __m512 x = _mm512_load_ps(work.query[h] + c);
          base[h] = _mm512_fmadd_ps(x, l, base[h]);
          most[h] = _mm512_max_ps(most[h], _mm512_abs_ps(_mm512_mul_ps(x, s)));
        }
      }
      alignas(16) float inverse[4];
      __m128 highest = _mm_max_ps(max_of_each(most), _mm_set1_ps(kTiny));
      _mm_store_ps(work.step[g], _mm_mul_ps(highest, _mm_set1_ps(1.f / 127)));
      _mm_store_ps(inverse, _mm_div_ps(_mm_set1_ps(127.f), highest));
      Wide sum[4] = {};
      for (int64_t c = first; c < first + call.group; c += 16) {
        __m512 s = load_floats(scale, call.type, c);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          __m512 x = _mm512_mul_ps(_mm512_load_ps(work.query[h] + c), s);
          Wide whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse[h])));
          sum[h] = _mm512_add_epi32(sum[h], whole);
          __m128i bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), fields);
          _mm_store_si128(reinterpret_cast<__m128i*>(work.folded[h] + c), bytes);
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h)
        rounded[h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[h]), _mm512_set1_ps(work.step[g][h]), rounded[h]);
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) base[h] = _mm512_fnmadd_ps(middle, rounded[h], base[h]);
    _mm_store_ps(work.base, sum_of_each(base));
  }

  static void scores(const Call& call, int heads, const uint8_t* codes, Work& work) {
    by_bits<Scores>(call, call.k.bits, heads, codes, work);
  }

  static void mix(const Call& call, int heads, const uint8_t* codes, Work& work) {
    by_bits<Mix>(call, call.v.bits, heads, codes, work);
  }

  static void read_values(const Call& call, const uint8_t* scale, const uint8_t* low, Work& work) {
    const int64_t groups = call.dim / call.group;
    const float offset = call.v.bits == 8 ? kOffset : 0;
    alignas(64) float s[kMaxTokens * kMaxGroups], l[kMaxTokens * kMaxGroups];
    widen(scale, call.type, call.tokens * groups, s);
    widen(low, call.type, call.tokens * groups, l);
    const Wide stride = _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int32_t>(groups)),
                                           _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t t = 0; t < call.tokens; t += 16) {
        const float *from = s + t * groups + g, *from_low = l + t * groups + g;
        __m512 one = groups == 1 ? _mm512_load_ps(from) : _mm512_i32gather_ps(stride, from, 4);
        __m512 two = groups == 1 ? _mm512_load_ps(from_low) : _mm512_i32gather_ps(stride, from_low, 4);
        one = _mm512_max_ps(one, _mm512_set1_ps(kTiny));
        __m512 inverse = inverse_of(one);
        _mm512_store_ps(work.v_scale[g] + t, one);
        _mm512_store_ps(work.v_inverse[g] + t, inverse);
        _mm512_store_ps(work.v_low[g] + t, _mm512_fmadd_ps(two, inverse, _mm512_set1_ps(offset)));
      }
  }

  static void weigh(const Call& call, int heads, Work& work) {
    if (call.tokens == 64) return weigh_tokens<64>(call, heads, work);
    if (call.tokens == 32) return weigh_tokens<32>(call, heads, work);
    if (call.tokens == 128) return weigh_tokens<128>(call, heads, work);
    Plain::weigh(call, heads, work);
  }

  template <int TOKENS>
  static void weigh_tokens(const Call& call, int heads, Work& work) {
    if (heads == 1) return weigh_heads<TOKENS, 1>(call, work);
    if (heads == 2) return weigh_heads<TOKENS, 2>(call, work);
    if (heads == 3) return weigh_heads<TOKENS, 3>(call, work);
    return weigh_heads<TOKENS, 4>(call, work);
  }

  template <int TOKENS, int HEADS>
  static void weigh_heads(const Call& call, Work& work) {
    constexpr int N = TOKENS / 16;
    __m512 highest[4];
    for (int h = 0; h < 4; ++h) highest[h] = _mm512_set1_ps(kLowest);
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) highest[h] = _mm512_max_ps(highest[h], _mm512_load_ps(work.score[h] + 16 * i));
    __m128 tops = max_of_each(highest);
    if (_mm_movemask_ps(_mm_cmpgt_ps(tops, _mm_load_ps(work.top))) & ((1 << HEADS) - 1)) {
      alignas(16) float each[4];
      _mm_store_ps(each, tops);
      for (int h = 0; h < HEADS; ++h) raise_top(call, h, each[h], work);
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      const __m512 top = _mm512_set1_ps(work.top[h]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        float* at = work.score[h] + 16 * i;
        _mm512_store_ps(at, ::exp2_of(_mm512_sub_ps(_mm512_load_ps(at), top)));
      }
    }
    for (int64_t g = 0, first = 0; first < call.dim; ++g, first += call.group) {
      for (int h = 0; h < 4; ++h) highest[h] = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        __m512 scale = _mm512_load_ps(work.v_scale[g] + 16 * i);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h)
          highest[h] = _mm512_max_ps(highest[h], _mm512_mul_ps(_mm512_load_ps(work.score[h] + 16 * i), scale));
      }
      alignas(16) float inverse[4];
      __m128 most = _mm_max_ps(max_of_each(highest), _mm_set1_ps(kTiny));
      _mm_store_ps(work.weight_step[g], _mm_mul_ps(most, _mm_set1_ps(1.f / 255)));
      _mm_store_ps(inverse, _mm_div_ps(_mm_set1_ps(255.f), most));
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        const __m512 factor = _mm512_set1_ps(inverse[h]), step = _mm512_set1_ps(work.weight_step[g][h]);
        __m512 total = _mm512_setzero_ps(), shift = total;
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
          __m512 w = _mm512_mul_ps(_mm512_load_ps(work.score[h] + 16 * i), _mm512_load_ps(work.v_scale[g] + 16 * i));
          Wide whole = _mm512_cvtps_epi32(_mm512_mul_ps(w, factor));
          __m512 back = _mm512_cvtepi32_ps(whole);
          total = _mm512_fmadd_ps(back, _mm512_load_ps(work.v_inverse[g] + 16 * i), total);
          shift = _mm512_fmadd_ps(back, _mm512_load_ps(work.v_low[g] + 16 * i), shift);
          _mm_store_si128(reinterpret_cast<__m128i*>(work.weight[h][g] + 16 * i), _mm512_cvtepi32_epi8(whole));
        }
        float *totals = work.total[h][g], *shifts = work.shift[h][g];
        _mm512_store_ps(totals, _mm512_fmadd_ps(total, step, _mm512_load_ps(totals)));
        _mm512_store_ps(shifts, _mm512_fmadd_ps(shift, step, _mm512_load_ps(shifts)));
      }
    }
  }
};

}  // namespace

namespace thrifty {
extern const Variant kAvx512 = {"avx512", codes_unit<Avx512>, dense_unit<Avx512>};
}
#endif
