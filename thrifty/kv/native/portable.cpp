// The variant for any processor.
#include "unit.h"

namespace {
struct Portable : Plain {};
}  // namespace

namespace thrifty {
extern const Variant kPortable = {"portable", codes_unit<Portable>, dense_unit<Portable>};
}
