// How sums of float64 are ordered: number i is added to lane i % kLanes, one after the other, and
// the lanes meet in a tree. On the CPU lanes are entries of registers, whatever their width; on
// CUDA they are those of a warp. So every instruction set and every device gives the same bits.
#pragma once

namespace landscapex {

constexpr int kLanes = 32;

}  // namespace landscapex
