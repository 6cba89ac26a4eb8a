// What one call of the kernel gets: the tensors of `thrifty.moe.experts.PackedMlp` where they lie. Mirrored by the ctypes
// structure in thrifty/moe/native_kernel.py; kVersion changes with it.
#pragma once
#include <cstdint>

namespace thrifty {

constexpr int32_t kVersion = 1;
constexpr int64_t kMostTokens = 8;

enum Type : int64_t { kFloat32 = 0, kBfloat16 = 1 };
enum Activation : int64_t { kSilu = 0, kGeluTanh = 1 };

struct Call {
  const float* x;            // [tokens, width]
  const float* router;       // [experts, width], or null: `choice` is given, or there is one expert
  int64_t* choice;           // [tokens]: read, or written where there is a router
  const uint8_t* members;    // [experts, stored], 0 or 1
  const void *gate, *up, *down;              // [stored, width] each, of `type`; gate may be null
  const void *gate_bias, *up_bias;           // [stored], of `type`, or null
  const void* out_bias;                      // [width], of `type`, or null
  float* out;                // [tokens, width]
  int64_t tokens, width, stored, experts, type, activation, threads;
};

// What channels `active[first .. last)` add to the output of every token whose expert has them.
using Unit = void (*)(const Call&, const int32_t* active, int64_t first, int64_t last, float* out);

// The expert of tokens `first .. last`; of equal ones the first.
using Route = void (*)(const Call&, int64_t first, int64_t last);

// Tokens `order[first .. last)`, all of one expert with `count` channels, as rows `first .. last` of `hidden`.
struct Group {
  const int64_t* order;
  int64_t first, last;
  const int32_t* channels;
  int64_t count;
  float* hidden;
  int64_t stride;
};

// Channels `begin .. end` of a group into `hidden`; columns `begin .. end` of its output out of `hidden`.
using Product = void (*)(const Call&, const Group&, int64_t begin, int64_t end);

constexpr int64_t kChannels = 48, kColumns = 32;  // of a unit of work

struct Variant {
  const char* name;
  Unit unit;
  Route route;
  Product hidden, output;
};

extern const Variant kPortable, kAvx2, kAvx512;

}  // namespace thrifty
