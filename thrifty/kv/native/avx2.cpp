// The variant for AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

#include "unit.h"

namespace {
struct Avx2 : Plain {};
}  // namespace

namespace thrifty {
extern const Variant kAvx2 = {"avx2", codes_unit<Avx2>, dense_unit<Avx2>};
}
#endif
