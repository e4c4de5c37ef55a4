#include "structure.h"

#include <type_traits>

namespace landscapex::program {

int32_t written(const Step& step) {
  return std::visit(
      [](const auto& s) -> int32_t {
        using S = std::decay_t<decltype(s)>;
        if constexpr (std::is_same_v<S, CrossEntropy> || std::is_same_v<S, ElementLoss> ||
                      std::is_same_v<S, Hits>) {
          return -1;
        } else {
          return s.out;
        }
      },
      step);
}

}  // namespace landscapex::program
