// The variant for AVX2: what surrounds the dot products, 8 numbers at a time.
#if defined(__x86_64__)
#include "avx2_dot.h"

namespace {

inline __m256 floats_of(__m128i half, int64_t type) {
  if (type == kFloat16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline __m256 load_floats(const uint8_t* from, int64_t type, int64_t i) {
  if (type == kFloat32) return _mm256_loadu_ps(reinterpret_cast<const float*>(from) + i);
  return floats_of(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i)), type);
}

inline __m256 exp2_of(__m256 x) {
  x = _mm256_max_ps(x, _mm256_set1_ps(-126.f));
  __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm256_sub_ps(x, whole);
  __m256 y = _mm256_set1_ps(1.339887440e-3f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(9.618437357e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.550332471e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(2.402264791e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(6.931472029e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.f));
  Wide exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
}

// Two vectors of whole numbers as 16 numbers of 16 bits, in order.
inline Wide narrowed(Wide first, Wide second) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
}

inline __m128i lower(Wide x) { return _mm256_castsi256_si128(x); }
inline __m128i upper(Wide x) { return _mm256_extracti128_si256(x, 1); }

// The largest element of each of four vectors, and their sums.
inline __m128 max_of_each(const __m256 (&x)[4]) {
  __m256 a = _mm256_max_ps(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
  __m256 b = _mm256_max_ps(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
  __m256 c = _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
  return _mm_max_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
}

inline __m128 sum_of_each(const __m256 (&x)[4]) {
  __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
  __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
  __m256 c = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
  return _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
}

template <int HEADS>
struct Around {
  static void fold(const Call& call, const uint8_t* scale, const uint8_t* low, const Work& work, Slot& slot) {
    const __m256 middle = _mm256_set1_ps(((1 << call.k.bits) - 1) * 0.5f), sign = _mm256_set1_ps(-0.f);
    const __m128i fields = call.k.bits == 8   ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
                           : call.k.bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                              : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256 base[4] = {}, rounded[4] = {};
    for (int64_t g = 0, first = 0; first < call.dim; ++g, first += call.group) {
      __m256 most[4] = {};
      for (int64_t c = first; c < first + call.group; c += 8) {
        const __m256 s = load_floats(scale, call.type, c);
        const __m256 l = _mm256_fmadd_ps(middle, s, load_floats(low, call.type, c));
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          const __m256 x = _mm256_load_ps(work.query[h] + c);
          base[h] = _mm256_fmadd_ps(x, l, base[h]);
          most[h] = _mm256_max_ps(most[h], _mm256_andnot_ps(sign, _mm256_mul_ps(x, s)));
        }
      }
      alignas(16) float inverse[4];
      const __m128 highest = _mm_max_ps(max_of_each(most), _mm_set1_ps(kTiny));
      _mm_store_ps(slot.step[g], _mm_mul_ps(highest, _mm_set1_ps(1.f / 127)));
      _mm_store_ps(inverse, _mm_div_ps(_mm_set1_ps(127.f), highest));
      Wide sum[4] = {};
      for (int64_t c = first; c < first + call.group; c += 16) {
        const __m256 s0 = load_floats(scale, call.type, c), s1 = load_floats(scale, call.type, c + 8);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          const __m256 factor = _mm256_set1_ps(inverse[h]);
          const __m256 x0 = _mm256_mul_ps(_mm256_load_ps(work.query[h] + c), s0);
          const __m256 x1 = _mm256_mul_ps(_mm256_load_ps(work.query[h] + c + 8), s1);
          const Wide whole0 = _mm256_cvtps_epi32(_mm256_mul_ps(x0, factor));
          const Wide whole1 = _mm256_cvtps_epi32(_mm256_mul_ps(x1, factor));
          sum[h] = _mm256_add_epi32(sum[h], _mm256_add_epi32(whole0, whole1));
          const Wide shorts = narrowed(whole0, whole1);
          const __m128i bytes = _mm_shuffle_epi8(_mm_packs_epi16(lower(shorts), upper(shorts)), fields);
          _mm_store_si128(reinterpret_cast<__m128i*>(slot.folded[h] + c), bytes);
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h)
        rounded[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[h]), _mm256_set1_ps(slot.step[g][h]), rounded[h]);
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) base[h] = _mm256_fnmadd_ps(middle, rounded[h], base[h]);
    _mm_storeu_ps(slot.base, sum_of_each(base));
  }

  static void raise_tops(const Call& call, const Slot* slots, int count, Work& work) {
    __m256 highest[4];
    for (int h = 0; h < 4; ++h) highest[h] = _mm256_set1_ps(kLowest);
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
      for (int i = 0; i < count; ++i)
        for (int64_t t = 0; t < call.tokens; t += 8)
          highest[h] = _mm256_max_ps(highest[h], _mm256_load_ps(slots[i].score[h] + t));
    const __m128 tops = max_of_each(highest);
    if (!(_mm_movemask_ps(_mm_cmpgt_ps(tops, _mm_load_ps(work.top))) & ((1 << HEADS) - 1))) return;
    alignas(16) float each[4];
    _mm_store_ps(each, tops);
    for (int h = 0; h < HEADS; ++h) Plain::raise_top(call, h, each[h], work);
  }

  static void weigh(const Call& call, Slot& slot, Work& work) {
    for (int h = 0; h < HEADS; ++h) {
      const __m256 top = _mm256_set1_ps(work.top[h]);
      for (int64_t t = 0; t < call.tokens; t += 8) {
        float* at = slot.score[h] + t;
        _mm256_store_ps(at, exp2_of(_mm256_sub_ps(_mm256_load_ps(at), top)));
      }
    }
    for (int64_t g = 0, first = 0; first < call.dim; ++g, first += call.group) {
      const auto& values = slot.values[g];
      __m256 highest[4] = {};
      for (int64_t t = 0; t < call.tokens; t += 8) {
        const __m256 scale = _mm256_load_ps(values[0] + t);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h)
          highest[h] = _mm256_max_ps(highest[h], _mm256_mul_ps(_mm256_load_ps(slot.score[h] + t), scale));
      }
      alignas(16) float inverse[4];
      const __m128 most = _mm_max_ps(max_of_each(highest), _mm_set1_ps(kTiny));
      _mm_store_ps(slot.weight_step[g], _mm_mul_ps(most, _mm_set1_ps(1.f / 255)));
      _mm_store_ps(inverse, _mm_div_ps(_mm_set1_ps(255.f), most));
      __m256 total[4] = {}, shift[4] = {};
      for (int64_t t = 0; t < call.tokens; t += 16) {
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          const __m256 factor = _mm256_set1_ps(inverse[h]);
          Wide whole[2];
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            const int64_t at = t + 8 * i;
            const __m256 w = _mm256_mul_ps(_mm256_load_ps(slot.score[h] + at), _mm256_load_ps(values[0] + at));
            whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(w, factor));
            const __m256 back = _mm256_cvtepi32_ps(whole[i]);
            total[h] = _mm256_fmadd_ps(back, _mm256_load_ps(values[1] + at), total[h]);
            shift[h] = _mm256_fmadd_ps(back, _mm256_load_ps(values[2] + at), shift[h]);
          }
          const Wide shorts = narrowed(whole[0], whole[1]);
          const __m128i bytes = _mm_packus_epi16(lower(shorts), upper(shorts));
          _mm_store_si128(reinterpret_cast<__m128i*>(slot.weight[h][g] + t), bytes);
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        const __m256 step = _mm256_set1_ps(slot.weight_step[g][h]);
        float *totals = work.total[h][g], *shifts = work.shift[h][g];
        _mm256_store_ps(totals, _mm256_fmadd_ps(total[h], step, _mm256_load_ps(totals)));
        _mm256_store_ps(shifts, _mm256_fmadd_ps(shift[h], step, _mm256_load_ps(shifts)));
      }
    }
  }
};

template <class Do>
inline void with_heads(int heads, const Do& act) {
  if (heads == 1) return act(Around<1>());
  if (heads == 2) return act(Around<2>());
  if (heads == 3) return act(Around<3>());
  act(Around<4>());
}

struct Avx2 : Plain {
  static void widen(const uint8_t* from, int64_t type, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 8) _mm256_storeu_ps(to + i, load_floats(from, type, i));
  }

  template <class V>
  static void fold(const Call& call, int heads, const uint8_t* scale, const uint8_t* low, const Work& work, Slot& slot) {
    with_heads(heads, [&](auto around) { around.fold(call, scale, low, work, slot); });
  }

  static void scores(const Call& call, int heads, const uint8_t* codes, Slot& slot) {
    by_bits<Scores>(call.k.bits, heads, call, codes, slot);
  }

  static void read_values(const Call& call, const uint8_t* scale, const uint8_t* low, Slot& slot) {
    const int64_t groups = call.dim / call.group;
    if (groups == 1) {
      for (int64_t t = 0; t < call.tokens; t += 8)
        put_values(slot, 0, t, load_floats(scale, call.type, t), load_floats(low, call.type, t));
    } else if (groups == 2 && call.type != kFloat32) {
      for (int64_t t = 0; t < call.tokens; t += 8, scale += 32, low += 32) {
        const Wide s = parted(scale), l = parted(low);
        put_values(slot, 0, t, floats_of(lower(s), call.type), floats_of(lower(l), call.type));
        put_values(slot, 1, t, floats_of(upper(s), call.type), floats_of(upper(l), call.type));
      }
    } else {
      alignas(64) float s[kMaxTokens * kMaxGroups], l[kMaxTokens * kMaxGroups];
      widen(scale, call.type, call.tokens * groups, s);
      widen(low, call.type, call.tokens * groups, l);
      finish_values(call, s, l, 0, slot);
    }
  }

  // Numbers of 16 bits of two groups in turn: those of the first, then those of the second.
  static Wide parted(const uint8_t* from) {
    const Wide apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2,
                                        3, 6, 7, 10, 11, 14, 15);
    return _mm256_permute4x64_epi64(
        _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const Wide*>(from)), apart), 0xd8);
  }

  static void put_values(Slot& slot, int64_t g, int64_t t, __m256 scale, __m256 low) {
    scale = _mm256_max_ps(scale, _mm256_set1_ps(kTiny));
    const __m256 inverse = _mm256_div_ps(_mm256_set1_ps(1.f), scale);
    _mm256_store_ps(slot.values[g][0] + t, scale);
    _mm256_store_ps(slot.values[g][1] + t, inverse);
    _mm256_store_ps(slot.values[g][2] + t, _mm256_mul_ps(low, inverse));
  }

  static void weigh(const Call& call, int heads, Slot* slots, int count, Work& work) {
    with_heads(heads, [&](auto around) {
      around.raise_tops(call, slots, count, work);
      for (int i = 0; i < count; ++i) around.weigh(call, slots[i], work);
    });
  }

  static void mix(const Call& call, int heads, const uint8_t* codes, const Slot& slot, Work& work) {
    by_bits<Mix>(call.v.bits, heads, call, codes, slot, work);
  }
};

}  // namespace

namespace thrifty {
extern const Variant kAvx2 = {"avx2", codes_unit<Avx2>, dense_unit<Avx2>};
}
#endif
