// Division by a number that the host knows: a multiplication by its reciprocal.
#pragma once

#include "phase.cuh"

namespace longrope {

// n / d by the reciprocal r = ceil(2^31 / d), for n and d up to 2^15. With e = r d - 2^31 < d, n r / 2^31 is n / d plus
// n e / d / 2^31. It stays below the next whole number, which is at least 1 / d away, since n e < 2^30.
LONGROPE_HD uint32_t divide(uint32_t n, uint32_t reciprocal) {
    return static_cast<uint32_t>(static_cast<uint64_t>(n) * reciprocal >> 31);
}

}  // namespace longrope
