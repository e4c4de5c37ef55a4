// Every operator's schema, written once. `Tensor(a!)` marks what the operator writes to.
#pragma once

namespace landscapex {

constexpr const char* kSchemas[] = {
    "perturb_(Tensor(a!)[] params, Tensor center, Tensor directions, float[] coordinates) -> ()",
    "filter_normalize_(Tensor(a!) directions, Tensor center, Tensor runs, Tensor groups, "
    "Tensor(b!) norms, bool elementwise) -> ()",
    "gaussian_(Tensor(a!) out, int key, int stream, int offset) -> ()",
    "orthogonalize_(Tensor(a!) w, Tensor basis, Tensor(b!) coefficients) -> ()",
};

}  // namespace landscapex
