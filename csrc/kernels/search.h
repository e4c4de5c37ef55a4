// Where an entry belongs, in a table of ascending starts.
#pragma once

#include "numeric.h"

namespace landscapex {

// The last row, of `count` > 0, that starts at or before `value`. `starts[i]` is where row i
// starts.
template <typename Starts>
LX_INLINE int64_t last_not_after(const Starts& starts, int64_t count, int64_t value) {
  int64_t row = 0;
  for (int64_t end = count; end - row > 1;) {
    const int64_t middle = row + (end - row) / 2;
    if (starts[middle] <= value) {
      row = middle;
    } else {
      end = middle;
    }
  }
  return row;
}

}  // namespace landscapex
