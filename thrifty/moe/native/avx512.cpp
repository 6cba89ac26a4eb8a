// The variant for processors with AVX-512.
#if defined(__x86_64__)
#include "unit.h"

namespace thrifty {
extern const Variant kAvx512 = {"avx512", unit};
}
#endif
