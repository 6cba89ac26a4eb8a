// The variant for processors with AVX2 and FMA.
#if defined(__x86_64__)
#include "unit.h"

namespace thrifty {
extern const Variant kAvx2 = {"avx2", unit};
}
#endif
