// The variant for any processor.
#include "unit.h"

namespace thrifty {
extern const Variant kPortable = {"portable", unit};
}
