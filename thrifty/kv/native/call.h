// What one call of the kernel gets: the tensors of `thrifty.kv.blocks.Blocks` where they lie. Mirrored by the ctypes
// structures in thrifty/kv/native_kernel.py; kVersion changes with them.
#pragma once
#include <cstdint>

namespace thrifty {

constexpr int32_t kVersion = 3;
constexpr int kMaxHeads = 4;  // query heads treated together
constexpr int kMaxDim = 256;
constexpr int kMaxGroups = 16;
constexpr int kMaxTokens = 128;  // of a block
constexpr int kHeader = 32;      // floats of a partial result before its channels

enum Type : int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

struct View {
  const uint8_t* data;
  int64_t row, head;  // strides in bytes; the rest is contiguous
};

struct Side {
  View sinks, codes, scale, low, open;
  int64_t bits;
};

struct Call {
  Side k, v;
  const float* q;  // [rows, kv_heads, shared, dim]
  float* out;      // the same
  int64_t rows, kv_heads, shared, dim;
  int64_t blocks, tokens, group;  // closed blocks, tokens of a block, channels of a value's group
  int64_t sinks, open;
  int64_t queries;  // the newest tokens, all of them in the open block: query head h is that of number h % queries, and
                    // sees no later one
  int64_t turned_k, turned_v;  // 1 where codes, `q` and `out` are in channels after the Hadamard rotation; sinks and
                               // open block never are
  int64_t type;  // of sinks, open, scale and low
  int64_t threads;
  float scale;
};

// Attention of `shared` query heads on a span of closed blocks, or on sinks and open block. For each query head a
// partial result of kHeader + dim floats: [0] the top exponent, [16 ..] a normaliser per group, [kHeader ..] sums.
using CodesUnit = void (*)(const Call&, int64_t row, int64_t head, int64_t first, int64_t last, float* partial);
using DenseUnit = void (*)(const Call&, int64_t row, int64_t head, float* partial);

struct Variant {
  const char* name;
  CodesUnit codes;
  DenseUnit dense;
};

extern const Variant kPortable, kAvx2, kAvx512;

}  // namespace thrifty
