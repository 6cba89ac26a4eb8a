// The variant for processors with AVX2 and FMA.
#if defined(__x86_64__)
#define VECTOR_BYTES 32
#include "products.h"
#include "unit.h"

namespace thrifty {
extern const Variant kAvx2 = {"avx2", unit, route, hidden, output};
}
#endif
