#include <cstddef>

#include "steps.h"

namespace landscapex::program {
namespace {

bool continues(const Run& run, const std::vector<const int32_t*>& tables, int64_t i) {
  for (std::size_t t = 0; t < tables.size(); ++t) {
    if (tables[t] && tables[t][i] - tables[t][i - 1] != run.step[t]) return false;
  }
  return true;
}

}  // namespace

// Greedy: a run takes its steps from its first two entries and goes on while they fit.
std::vector<Run> compress(const std::vector<const int32_t*>& tables, int64_t n) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < n; ++i) {
    if (!runs.empty()) {
      Run& run = runs.back();
      if (run.count == 1) {
        for (std::size_t t = 0; t < tables.size(); ++t) {
          run.step[t] = tables[t] ? tables[t][i] - tables[t][i - 1] : 0;
        }
      }
      if (continues(run, tables, i)) {
        ++run.count;
        continue;
      }
    }
    Run run = {{}, {}, 1};
    for (std::size_t t = 0; t < tables.size(); ++t) run.begin[t] = tables[t] ? tables[t][i] : 0;
    runs.push_back(run);
  }
  return runs;
}

}  // namespace landscapex::program
