// Attention of one key head's query heads on a span of blocks, in plain C++; a variant replaces the parts that it
// can do faster. Everything is in an unnamed namespace, since each variant compiles this file for its own processor.
//
//   logits    u = q * k_scale is rounded to int8 per block and channel group, u ~ step * folded; then
//             q k = step * sum folded * code + sum q * (low + middle * scale) - middle * step * sum folded,
//             where the last two put the error of rounding u on codes about their middle instead of about 0.
//   weights   w = p * v_scale is rounded to uint8 per block and group, w ~ step * weight. The ROUNDED weights stand in
//             all three places, numerator, low and normaliser, or a bias grows with the length.
#pragma once
#include <cmath>
#include <cstring>

#include "call.h"
#include "numbers.h"

namespace {

using namespace thrifty;

constexpr int kLanes = 16;

constexpr int kBatch = 4;  // blocks that go through a phase together, so that one can wait while the next computes

// What is known of one block while it is treated.
struct Slot {
  alignas(64) int8_t folded[kMaxHeads][kMaxDim];
  alignas(64) float step[kMaxGroups][kMaxHeads];
  float base[kMaxHeads];
  alignas(64) float score[kMaxHeads][kMaxTokens];
  alignas(64) float values[kMaxGroups][3][kMaxTokens];  // scale, 1 / scale, low / scale
  alignas(64) uint8_t weight[kMaxHeads][kMaxGroups][kMaxTokens];
  alignas(64) float weight_step[kMaxGroups][kMaxHeads];
};

// What is kept from block to block.
struct Work {
  alignas(64) float query[kMaxHeads][kMaxDim];  // times softmax scale and log2 e
  alignas(64) float top[kMaxHeads];
  alignas(64) float total[kMaxHeads][kMaxGroups][kLanes], shift[kMaxHeads][kMaxGroups][kLanes];  // sums, in parts
  alignas(64) float mixed[kMaxHeads][kMaxDim];
  uint8_t group_of[kMaxDim];
};

constexpr float kTiny = 1e-30f;
constexpr float kLowest = -1e30f;

inline int64_t element_bytes(const Call& call) { return call.type == kFloat32 ? 4 : 2; }

inline int64_t row_bytes(const Call& call, const Side& side) { return call.dim * side.bits / 8; }

inline const uint8_t* at(const View& view, int64_t row, int64_t head) {
  return view.data + row * view.row + head * view.head;
}

// The plain parts. `Variant` structs derive from this and hide what they do better.
struct Plain {
  static constexpr float kOffset = 0;  // what is taken from the codes of 8-bit values

  static void widen(const uint8_t* from, int64_t type, int64_t count, float* to) {
    if (type == kFloat32) {
      std::memcpy(to, from, 4 * count);
      return;
    }
    uint16_t x[kMaxDim];
    for (int64_t done = 0; done < count; done += kMaxDim) {
      int64_t size = count - done < kMaxDim ? count - done : kMaxDim;
      std::memcpy(x, from + 2 * done, 2 * size);
      if (type == kBfloat16)
        for (int64_t i = 0; i < size; ++i) to[done + i] = from_bits(static_cast<uint32_t>(x[i]) << 16);
      else
        for (int64_t i = 0; i < size; ++i) to[done + i] = from_half(x[i]);
    }
  }

  // Scales of a block of values, per group: scale, 1 / scale, low / scale.
  static void read_values(const Call& call, const uint8_t* scale, const uint8_t* low, Slot& slot) {
    int64_t groups = call.dim / call.group;
    float offset = call.v.bits == 8 ? kOffset : 0;
    alignas(64) float s[kMaxTokens * kMaxGroups], l[kMaxTokens * kMaxGroups];
    widen(scale, call.type, call.tokens * groups, s);
    widen(low, call.type, call.tokens * groups, l);
    finish_values(call, s, l, offset, slot);
  }

  static void finish_values(const Call& call, const float* s, const float* l, float offset, Slot& slot) {
    int64_t groups = call.dim / call.group;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t t = 0; t < call.tokens; ++t) {
        float one = s[t * groups + g] < kTiny ? kTiny : s[t * groups + g];
        slot.values[g][0][t] = one;
        slot.values[g][1][t] = 1 / one;
        slot.values[g][2][t] = l[t * groups + g] / one + offset;
      }
  }

  // Where `unpack` puts channel c. Only places within 16 channels change.
  static int64_t place_of(int64_t bits, int64_t c) {
    if (bits == 8) return c;
    if (bits == 4) return (c & ~7) + (c & 1) * 4 + (c & 7) / 2;
    return (c & ~15) + (c & 3) * 4 + (c & 15) / 4;
  }

  // Brings the folded query into the order in which `scores` meets the channels.
  static void arrange(int64_t bits, int64_t dim, const int8_t* from, int8_t* to) {
    for (int64_t c = 0; c < dim; ++c) to[place_of(bits, c)] = from[c];
  }

  template <class V>
  static void fold(const Call& call, int heads, const uint8_t* scale, const uint8_t* low, const Work& work, Slot& slot) {
    alignas(64) float s[kMaxDim], l[kMaxDim], u[kMaxDim];
    alignas(16) int8_t whole[kMaxDim];
    float middle = ((1 << call.k.bits) - 1) * 0.5f;
    V::widen(scale, call.type, call.dim, s);
    V::widen(low, call.type, call.dim, l);
    for (int h = 0; h < heads; ++h) {
      const float* q = work.query[h];
      float base = 0;
#pragma omp simd reduction(+ : base)
      for (int64_t c = 0; c < call.dim; ++c) base += q[c] * (l[c] + middle * s[c]);
      for (int64_t g = 0; g * call.group < call.dim; ++g) {
        float most = kTiny;
        int64_t first = g * call.group, last = first + call.group;
#pragma omp simd reduction(max : most)
        for (int64_t c = first; c < last; ++c) {
          u[c] = q[c] * s[c];
          float size = std::fabs(u[c]);
          most = size > most ? size : most;
        }
        float step = most / 127, inverse = 127 / most, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = first; c < last; ++c) {
          float one = (u[c] * inverse + 12582912.f) - 12582912.f;
          whole[c] = static_cast<int8_t>(static_cast<int32_t>(one));
          sum += one;
        }
        slot.step[g][h] = step;
        base -= middle * step * sum;
      }
      V::arrange(call.k.bits, call.dim, whole, slot.folded[h]);
      slot.base[h] = base;
    }
  }

  // One row of packed codes as bytes, the fields of four bytes together: one shift and one mask for four codes.
  static void unpack(const uint8_t* row, int64_t bits, int64_t dim, uint8_t* codes) {
    if (bits == 8) std::memcpy(codes, row, dim);
    if (bits == 4) unpack_fields<4, 2>(row, dim, codes);
    if (bits < 4) unpack_fields<2, 4>(row, dim, codes);
    if (bits != 3) return;
    for (int64_t i = 0; 16 * i < dim; ++i) {
      uint32_t high = row[dim / 4 + 2 * i] | row[dim / 4 + 2 * i + 1] << 8, out[4];
      uint32_t nibbles = (high & 0xf) | (high & 0xf0) << 4 | (high & 0xf00) << 8 | (high & 0xf000) << 12;
      std::memcpy(out, codes + 16 * i, 16);
      for (int f = 0; f < 4; ++f) out[f] |= ((nibbles >> f) & 0x01010101) << 2;
      std::memcpy(codes + 16 * i, out, 16);
    }
  }

  template <int WIDTH, int FIELDS>
  static void unpack_fields(const uint8_t* row, int64_t dim, uint8_t* codes) {
    constexpr uint32_t mask = WIDTH == 4 ? 0x0f0f0f0f : 0x03030303;
    for (int64_t i = 0; 4 * i * FIELDS < dim; ++i) {
      uint32_t word, out[FIELDS];
      std::memcpy(&word, row + 4 * i, 4);
      for (int f = 0; f < FIELDS; ++f) out[f] = (word >> (WIDTH * f)) & mask;
      std::memcpy(codes + 4 * i * FIELDS, out, sizeof out);
    }
  }

  // Both lengths are multiples of 16, which lets the loop become vector code without a remainder.
  static int32_t dot(const uint8_t* codes, const int8_t* query, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i += 16)
      for (int c = 0; c < 16; ++c) sum += static_cast<int16_t>(codes[i + c]) * static_cast<int16_t>(query[i + c]);
    return sum;
  }

  static void scores(const Call& call, int heads, const uint8_t* codes, Slot& slot) {
    int64_t bytes = row_bytes(call, call.k);
    alignas(64) uint8_t row[kMaxDim];
    for (int64_t t = 0; t < call.tokens; ++t) {
      unpack(codes + t * bytes, call.k.bits, call.dim, row);
      for (int h = 0; h < heads; ++h) {
        float score = slot.base[h];
        for (int64_t g = 0; g * call.group < call.dim; ++g) {
          int32_t sum = dot(row + g * call.group, slot.folded[h] + g * call.group, call.group);
          score += slot.step[g][h] * static_cast<float>(sum);
        }
        slot.score[h][t] = score;
      }
    }
  }

  static void raise_top(const Call& call, int h, float most, Work& work) {
    if (!(most > work.top[h])) return;
    float shrink = exp2_of(work.top[h] - most);
    work.top[h] = most;
    for (int64_t g = 0; g < call.dim / call.group; ++g)
      for (int i = 0; i < kLanes; ++i) work.total[h][g][i] *= shrink, work.shift[h][g][i] *= shrink;
    for (int64_t c = 0; c < (call.dim + 63) / 64 * 64; ++c) work.mixed[h][c] *= shrink;
  }

  static void weigh(const Call& call, int heads, Slot* slots, int count, Work& work) {
    // All tops before any weight: the weights of a batch are mixed after the last of them is known.
    for (int i = 0; i < count; ++i)
      for (int h = 0; h < heads; ++h) raise_top(call, h, highest(slots[i].score[h], call.tokens), work);
    for (int i = 0; i < count; ++i) weigh_block(call, heads, slots[i], work);
  }

  static float highest(const float* score, int64_t count) {
    float most = kLowest;
#pragma omp simd reduction(max : most)
    for (int64_t t = 0; t < count; ++t) most = score[t] > most ? score[t] : most;
    return most;
  }

  static void weigh_block(const Call& call, int heads, Slot& slot, Work& work) {
    alignas(64) float p[kMaxTokens], w[kMaxTokens];
    for (int h = 0; h < heads; ++h) {
#pragma omp simd
      for (int64_t t = 0; t < call.tokens; ++t) p[t] = exp2_of(slot.score[h][t] - work.top[h]);
      for (int64_t g = 0; g * call.group < call.dim; ++g) {
        float top = kTiny;
#pragma omp simd reduction(max : top)
        for (int64_t t = 0; t < call.tokens; ++t) {
          w[t] = p[t] * slot.values[g][0][t];
          top = w[t] > top ? w[t] : top;
        }
        float inverse = 255 / top, total = 0, shift = 0;
#pragma omp simd reduction(+ : total, shift)
        for (int64_t t = 0; t < call.tokens; ++t) {
          float whole = (w[t] * inverse + 12582912.f) - 12582912.f;
          slot.weight[h][g][t] = static_cast<uint8_t>(static_cast<int32_t>(whole));
          total += whole * slot.values[g][1][t];
          shift += whole * slot.values[g][2][t];
        }
        float step = top / 255;
        slot.weight_step[g][h] = step;
        work.total[h][g][0] += step * total;
        work.shift[h][g][0] += step * shift;
      }
    }
  }

  static void mix(const Call& call, int heads, const uint8_t* codes, const Slot& slot, Work& work) {
    int64_t bytes = row_bytes(call, call.v);
    int32_t sum[kMaxHeads][kMaxDim] = {};
    uint8_t row[kMaxDim];
    for (int64_t t = 0; t < call.tokens; ++t) {
      unpack(codes + t * bytes, call.v.bits, call.dim, row);
      for (int h = 0; h < heads; ++h)
        for (int64_t g = 0; g * call.group < call.dim; ++g) {
          int32_t weight = slot.weight[h][g][t];
          for (int64_t c = g * call.group; c < (g + 1) * call.group; ++c) sum[h][c] += weight * row[c];
        }
    }
    for (int h = 0; h < heads; ++h)
      for (int64_t c = 0; c < call.dim; ++c)
        work.mixed[h][c] += slot.weight_step[work.group_of[c]][h] * static_cast<float>(sum[h][c]);
  }

  // Where `mix` keeps each channel.
  static void places(int64_t bits, int64_t dim, int32_t* place) {
    for (int64_t c = 0; c < dim; ++c) place[c] = static_cast<int32_t>(place_of(bits, c));
  }

  // Sinks or open block: logits of `count` tokens, the first `seen[h]` of which head h sees, then their weighted sum;
  // everything in float32.
  template <class V>
  static void attend_dense(const Call& call, int heads, const uint8_t* k, const uint8_t* v, int64_t count,
                           const int64_t* seen, Work& work) {
    alignas(64) float row[kMaxDim], score[kMaxHeads][kMaxTokens];
    int64_t bytes = call.dim * element_bytes(call), here[kMaxHeads];
    for (int64_t done = 0; done < count; done += kMaxTokens) {
      int64_t size = count - done < kMaxTokens ? count - done : kMaxTokens;
      for (int64_t t = 0; t < size; ++t) {
        V::widen(k + (done + t) * bytes, call.type, call.dim, row);
        for (int h = 0; h < heads; ++h) {
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < call.dim; ++c) sum += work.query[h][c] * row[c];
          score[h][t] = sum;
        }
      }
      for (int h = 0; h < heads; ++h) {
        here[h] = seen[h] - done < 0 ? 0 : seen[h] - done < size ? seen[h] - done : size;
        raise_top(call, h, highest(score[h], here[h]), work);
        for (int64_t t = 0; t < here[h]; ++t) score[h][t] = exp2_of(score[h][t] - work.top[h]);
        for (int64_t t = 0; t < here[h]; ++t) work.total[h][0][0] += score[h][t];
      }
      for (int64_t t = 0; t < size; ++t) {
        V::widen(v + (done + t) * bytes, call.type, call.dim, row);
        for (int h = 0; h < heads; ++h) {
          if (t >= here[h]) continue;
          float weight = score[h][t];
          for (int64_t c = 0; c < call.dim; ++c) work.mixed[h][c] += weight * row[c];
        }
      }
    }
  }
};

inline void begin(const Call& call, int64_t row, int64_t head, int64_t first, int heads, Work& work) {
  const float* q = call.q + ((row * call.kv_heads + head) * call.shared + first) * call.dim;
  float factor = call.scale * 1.44269504f;
  for (int64_t c = 0, g = 0; c < call.dim; c += call.group, ++g)
    std::memset(work.group_of + c, static_cast<int>(g), call.group);
  for (int h = 0; h < heads; ++h) {
    for (int64_t c = 0; c < call.dim; ++c) work.query[h][c] = q[h * call.dim + c] * factor;
    work.top[h] = kLowest;
    std::memset(work.total[h], 0, call.dim / call.group * sizeof work.total[h][0]);
    std::memset(work.shift[h], 0, call.dim / call.group * sizeof work.shift[h][0]);
    std::memset(work.mixed[h], 0, sizeof work.mixed[h]);
  }
}

inline float sum_of(const float* lanes) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Query heads in rounds of nearly equal size, each at most kMaxHeads.
inline int round_of(const Call& call, int64_t first) {
  int64_t rounds = (call.shared + kMaxHeads - 1) / kMaxHeads, size = (call.shared + rounds - 1) / rounds;
  return static_cast<int>(call.shared - first < size ? call.shared - first : size);
}

template <class V>
void codes_unit(const Call& call, int64_t row, int64_t head, int64_t first, int64_t last, float* partial) {
  Work work;
  Slot slots[kBatch];
  int64_t dim = call.dim, groups = dim / call.group, wide = element_bytes(call);
  const uint8_t *k_codes = at(call.k.codes, row, head), *v_codes = at(call.v.codes, row, head);
  const uint8_t *k_scale = at(call.k.scale, row, head), *k_low = at(call.k.low, row, head);
  const uint8_t *v_scale = at(call.v.scale, row, head), *v_low = at(call.v.low, row, head);
  int64_t k_bytes = call.tokens * row_bytes(call, call.k), v_bytes = call.tokens * row_bytes(call, call.v);
  int64_t k_wide = dim * wide, v_wide = call.tokens * groups * wide;
  int32_t place[kMaxDim];
  V::places(call.v.bits, dim, place);
  int heads = 0;
  for (int64_t start = 0; start < call.shared; start += heads) {
    heads = round_of(call, start);
    begin(call, row, head, start, heads, work);
    for (int64_t b = first; b < last; b += kBatch) {
      const int count = static_cast<int>(last - b < kBatch ? last - b : kBatch);
      for (int i = 0; i < count; ++i)
        V::template fold<V>(call, heads, k_scale + (b + i) * k_wide, k_low + (b + i) * k_wide, work, slots[i]);
      for (int i = 0; i < count; ++i) V::scores(call, heads, k_codes + (b + i) * k_bytes, slots[i]);
      for (int i = 0; i < count; ++i)
        V::read_values(call, v_scale + (b + i) * v_wide, v_low + (b + i) * v_wide, slots[i]);
      V::weigh(call, heads, slots, count, work);
      for (int i = 0; i < count; ++i) V::mix(call, heads, v_codes + (b + i) * v_bytes, slots[i], work);
    }
    for (int h = 0; h < heads; ++h) {
      float* to = partial + (start + h) * (kHeader + dim);
      to[0] = work.top[h];
      for (int64_t g = 0; g < groups; ++g) {
        float shift = sum_of(work.shift[h][g]);
        to[16 + g] = sum_of(work.total[h][g]);
        for (int64_t c = g * call.group; c < (g + 1) * call.group; ++c)
          to[kHeader + c] = work.mixed[h][place[c]] + shift;
      }
    }
  }
}

// The Hadamard rotation of thrifty/kv/rotation.py, in place: by the largest power of two that divides `dim`, in pieces.
inline void rotate(float* x, int64_t dim) {
  int64_t width = dim & -dim;
  float factor = 1 / std::sqrt(static_cast<float>(width));
  for (int64_t size = 1; size < width; size *= 2)
    for (int64_t start = 0; start < dim; start += 2 * size)
      for (int64_t c = start; c < start + size; ++c) {
        float left = x[c], right = x[c + size];
        x[c] = left + right;
        x[c + size] = left - right;
      }
  for (int64_t c = 0; c < dim; ++c) x[c] *= factor;
}

// Exact tokens are where the model has them: the query is turned back for them and their sum turned, not each of them.
template <class V>
void dense_unit(const Call& call, int64_t row, int64_t head, float* partial) {
  Work work;
  int heads = 0;
  for (int64_t start = 0; start < call.shared; start += heads) {
    heads = round_of(call, start);
    begin(call, row, head, start, heads, work);
    if (call.turned_k)
      for (int h = 0; h < heads; ++h) rotate(work.query[h], call.dim);
    int64_t all[kMaxHeads], own[kMaxHeads];
    for (int h = 0; h < heads; ++h) {
      all[h] = call.sinks;
      own[h] = call.open - (call.queries - 1 - (start + h) % call.queries);
    }
    V::template attend_dense<V>(call, heads, at(call.k.sinks, row, head), at(call.v.sinks, row, head), call.sinks, all,
                                work);
    V::template attend_dense<V>(call, heads, at(call.k.open, row, head), at(call.v.open, row, head), call.open, own,
                                work);
    for (int h = 0; h < heads; ++h) {
      float* to = partial + (start + h) * (kHeader + call.dim);
      to[0] = work.top[h];
      for (int64_t g = 0; g < call.dim / call.group; ++g) to[16 + g] = work.total[h][0][0];
      if (call.turned_v) rotate(work.mixed[h], call.dim);
      std::memcpy(to + kHeader, work.mixed[h], 4 * call.dim);
    }
  }
}

}  // namespace
