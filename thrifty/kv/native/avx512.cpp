// The variant for AVX-512 with VNNI and VBMI: what surrounds the dot products, 16 numbers at a time.
#if defined(__x86_64__)
#include "avx512_dot.h"

namespace {

inline __m512 floats_of(__m256i half, int64_t type) {
  if (type == kFloat16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512 load_floats(const uint8_t* from, int64_t type, int64_t i) {
  if (type == kFloat32) return _mm512_loadu_ps(from + 4 * i);
  return floats_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * i)), type);
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

struct Avx512 : Plain {
  static constexpr float kOffset = 128;

  static void widen(const uint8_t* from, int64_t type, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 16) _mm512_storeu_ps(to + i, load_floats(from, type, i));
  }

  static void places(int64_t bits, int64_t dim, int32_t* place) {
    for (uint32_t c = 0; c < static_cast<uint32_t>(dim); ++c)
      place[c] = static_cast<int32_t>(bits == 8   ? c
                                      : bits == 4 ? (c & ~31u) + (c & 1) * 16 + (c & 31) / 2
                                                  : (c & ~63u) + (c & 3) * 16 + (c & 63) / 4);
  }

  template <class V>
  static void fold(const Call& call, int heads, const uint8_t* scale, const uint8_t* low, const Work& work, Slot& slot) {
    if (heads == 1) return fold_heads<1>(call, scale, low, work, slot);
    if (heads == 2) return fold_heads<2>(call, scale, low, work, slot);
    if (heads == 3) return fold_heads<3>(call, scale, low, work, slot);
    return fold_heads<4>(call, scale, low, work, slot);
  }

  template <int HEADS>
  static void fold_heads(const Call& call, const uint8_t* scale, const uint8_t* low, const Work& work, Slot& slot) {
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
      _mm_store_ps(slot.step[g], _mm_mul_ps(highest, _mm_set1_ps(1.f / 127)));
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
          _mm_store_si128(reinterpret_cast<__m128i*>(slot.folded[h] + c), bytes);
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h)
        rounded[h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[h]), _mm512_set1_ps(slot.step[g][h]), rounded[h]);
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) base[h] = _mm512_fnmadd_ps(middle, rounded[h], base[h]);
    _mm_store_ps(slot.base, sum_of_each(base));
  }

  static void scores(const Call& call, int heads, const uint8_t* codes, Slot& slot) {
    by_bits<Scores>(call.k.bits, heads, call, codes, slot);
  }

  static void mix(const Call& call, int heads, const uint8_t* codes, const Slot& slot, Work& work) {
    by_bits<Mix>(call.v.bits, heads, call, codes, slot, work);
  }

  static void read_values(const Call& call, const uint8_t* scale, const uint8_t* low, Slot& slot) {
    const int64_t groups = call.dim / call.group;
    const float offset = call.v.bits == 8 ? kOffset : 0;
    if (groups == 1) {
      for (int64_t t = 0; t < call.tokens; t += 16)
        put_values(slot, 0, t, load_floats(scale, call.type, t), load_floats(low, call.type, t), offset);
    } else if (groups <= 4 && call.type != kFloat32) {
      read_few(call, scale, low, offset, slot);
    } else {
      alignas(64) float s[kMaxTokens * kMaxGroups], l[kMaxTokens * kMaxGroups];
      widen(scale, call.type, call.tokens * groups, s);
      widen(low, call.type, call.tokens * groups, l);
      const Wide stride = _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int32_t>(groups)),
                                             _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t t = 0; t < call.tokens; t += 16)
          put_values(slot, g, t, _mm512_i32gather_ps(stride, s + t * groups + g, 4),
                     _mm512_i32gather_ps(stride, l + t * groups + g, 4), offset);
    }
  }

  // Two to four groups of 16-bit scales: 16 tokens of them lie in two vectors, sorted by one permutation for a pair.
  static void read_few(const Call& call, const uint8_t* scale, const uint8_t* low, float offset, Slot& slot) {
    const int groups = static_cast<int>(call.dim / call.group);
    alignas(64) int16_t index[2][32];
    for (int g = 0; g < 4; ++g)
      for (int i = 0; i < 16; ++i) index[g / 2][16 * (g % 2) + i] = static_cast<int16_t>(i * groups + g);
    const __mmask32 rest = groups == 4 ? 0xffffffff : groups == 3 ? 0xffff : 0;
    for (int64_t t = 0; t < call.tokens; t += 16, scale += 32 * groups, low += 32 * groups) {
      Wide s0 = _mm512_loadu_si512(scale), s1 = _mm512_maskz_loadu_epi16(rest, scale + 64);
      Wide l0 = _mm512_loadu_si512(low), l1 = _mm512_maskz_loadu_epi16(rest, low + 64);
      for (int g = 0; g < groups; g += 2) {
        const Wide sorted = _mm512_load_si512(index[g / 2]);
        Wide s = _mm512_permutex2var_epi16(s0, sorted, s1), l = _mm512_permutex2var_epi16(l0, sorted, l1);
        put_values(slot, g, t, floats_of(_mm512_castsi512_si256(s), call.type),
                   floats_of(_mm512_castsi512_si256(l), call.type), offset);
        if (g + 1 < groups)
          put_values(slot, g + 1, t, floats_of(_mm512_extracti32x8_epi32(s, 1), call.type),
                     floats_of(_mm512_extracti32x8_epi32(l, 1), call.type), offset);
      }
    }
  }

  static void put_values(Slot& slot, int64_t g, int64_t t, __m512 scale, __m512 low, float offset) {
    scale = _mm512_max_ps(scale, _mm512_set1_ps(kTiny));
    __m512 inverse = inverse_of(scale);
    _mm512_store_ps(slot.values[g][0] + t, scale);
    _mm512_store_ps(slot.values[g][1] + t, inverse);
    _mm512_store_ps(slot.values[g][2] + t, _mm512_fmadd_ps(low, inverse, _mm512_set1_ps(offset)));
  }

  static void weigh(const Call& call, int heads, Slot* slots, int count, Work& work) {
    if (call.tokens == 64) return weigh_tokens<64>(call, heads, slots, count, work);
    if (call.tokens == 32) return weigh_tokens<32>(call, heads, slots, count, work);
    return weigh_tokens<128>(call, heads, slots, count, work);
  }

  template <int TOKENS>
  static void weigh_tokens(const Call& call, int heads, Slot* slots, int count, Work& work) {
    raise_tops<TOKENS>(call, heads, slots, count, work);
    for (int i = 0; i < count; ++i) {
      if (heads == 1) weigh_heads<TOKENS, 1>(call, slots[i], work);
      if (heads == 2) weigh_heads<TOKENS, 2>(call, slots[i], work);
      if (heads == 3) weigh_heads<TOKENS, 3>(call, slots[i], work);
      if (heads == 4) weigh_heads<TOKENS, 4>(call, slots[i], work);
    }
  }

  template <int TOKENS>
  static void raise_tops(const Call& call, int heads, const Slot* slots, int count, Work& work) {
    __m512 highest[4];
    for (int h = 0; h < 4; ++h) highest[h] = _mm512_set1_ps(kLowest);
    for (int h = 0; h < heads; ++h)
      for (int i = 0; i < count; ++i)
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t += 16)
          highest[h] = _mm512_max_ps(highest[h], _mm512_load_ps(slots[i].score[h] + t));
    __m128 tops = max_of_each(highest);
    if (_mm_movemask_ps(_mm_cmpgt_ps(tops, _mm_load_ps(work.top))) & ((1 << heads) - 1)) {
      alignas(16) float each[4];
      _mm_store_ps(each, tops);
      for (int h = 0; h < heads; ++h) raise_top(call, h, each[h], work);
    }
  }

  template <int TOKENS, int HEADS>
  static void weigh_heads(const Call& call, Slot& slot, Work& work) {
    constexpr int N = TOKENS / 16;
    __m512 highest[4];
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      const __m512 top = _mm512_set1_ps(work.top[h]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        float* at = slot.score[h] + 16 * i;
        _mm512_store_ps(at, ::exp2_of(_mm512_sub_ps(_mm512_load_ps(at), top)));
      }
    }
    for (int64_t g = 0, first = 0; first < call.dim; ++g, first += call.group) {
      for (int h = 0; h < 4; ++h) highest[h] = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        __m512 scale = _mm512_load_ps(slot.values[g][0] + 16 * i);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h)
          highest[h] = _mm512_max_ps(highest[h], _mm512_mul_ps(_mm512_load_ps(slot.score[h] + 16 * i), scale));
      }
      alignas(16) float inverse[4];
      __m128 most = _mm_max_ps(max_of_each(highest), _mm_set1_ps(kTiny));
      _mm_store_ps(slot.weight_step[g], _mm_mul_ps(most, _mm_set1_ps(1.f / 255)));
      _mm_store_ps(inverse, _mm_div_ps(_mm_set1_ps(255.f), most));
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        const __m512 factor = _mm512_set1_ps(inverse[h]), step = _mm512_set1_ps(slot.weight_step[g][h]);
        __m512 total = _mm512_setzero_ps(), shift = total;
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
          __m512 w = _mm512_mul_ps(_mm512_load_ps(slot.score[h] + 16 * i), _mm512_load_ps(slot.values[g][0] + 16 * i));
          Wide whole = _mm512_cvtps_epi32(_mm512_mul_ps(w, factor));
          __m512 back = _mm512_cvtepi32_ps(whole);
          total = _mm512_fmadd_ps(back, _mm512_load_ps(slot.values[g][1] + 16 * i), total);
          shift = _mm512_fmadd_ps(back, _mm512_load_ps(slot.values[g][2] + 16 * i), shift);
          _mm_store_si128(reinterpret_cast<__m128i*>(slot.weight[h][g] + 16 * i), _mm512_cvtepi32_epi8(whole));
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
