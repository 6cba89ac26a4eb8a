// The parts of a variant by their bits and query heads, which they have as constants. Included once `scores_of` and
// `mix_of` are there.
#pragma once
#include "unit.h"

namespace {

template <template <int, int> class Part, int BITS, class... More>
void by_heads(int heads, More&&... more) {
  if (heads == 1) return Part<BITS, 1>::run(more...);
  if (heads == 2) return Part<BITS, 2>::run(more...);
  if (heads == 3) return Part<BITS, 3>::run(more...);
  return Part<BITS, 4>::run(more...);
}

template <template <int, int> class Part, class... More>
void by_bits(int64_t bits, int heads, More&&... more) {
  if (bits == 2) return by_heads<Part, 2>(heads, more...);
  if (bits == 3) return by_heads<Part, 3>(heads, more...);
  if (bits == 4) return by_heads<Part, 4>(heads, more...);
  return by_heads<Part, 8>(heads, more...);
}

template <int BITS, int HEADS>
struct Scores {
  static void run(const Call& call, const uint8_t* codes, Slot& slot) { scores_of<BITS, HEADS>(call, codes, slot); }
};
template <int BITS, int HEADS>
struct Mix {
  static void run(const Call& call, const uint8_t* codes, const Slot& slot, Work& work) {
    mix_of<BITS, HEADS>(call, codes, slot, work);
  }
};

}  // namespace
