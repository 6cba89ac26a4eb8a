// The variant for any processor.
#include "unit.h"

namespace {
struct Portable : Plain {
  static void fetch(const uint8_t*, int64_t, const uint8_t*, int64_t) {}
};
}  // namespace

namespace thrifty {
extern const Variant kPortable = {"portable", codes_unit<Portable>, dense_unit<Portable>};
}
