// The variant for any processor.
#define VECTOR_BYTES 16
#include "products.h"
#include "unit.h"

namespace thrifty {
extern const Variant kPortable = {"portable", unit, route, hidden, output};
}
