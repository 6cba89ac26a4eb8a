// The variant for processors with AVX-512.
#if defined(__x86_64__)
#define VECTOR_BYTES 64
#include "products.h"
#include "unit.h"

namespace thrifty {
extern const Variant kAvx512 = {"avx512", unit, route, hidden, output};
}
#endif
