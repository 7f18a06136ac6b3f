// Sums over the threads of a block, in every thread, always in the same order.
#pragma once

#include "kernels.cuh"

namespace {

__device__ SfMass sf_over_warp(SfMass mass) {
  for (int lane = 16; lane > 0; lane /= 2) {
    mass.same += __shfl_xor_sync(0xffffffffu, mass.same, lane);
    mass.bridge += __shfl_xor_sync(0xffffffffu, mass.bridge, lane);
    mass.other += __shfl_xor_sync(0xffffffffu, mass.other, lane);
    mass.n_same += __shfl_xor_sync(0xffffffffu, mass.n_same, lane);
    mass.n_bridge += __shfl_xor_sync(0xffffffffu, mass.n_bridge, lane);
  }
  return mass;
}

template <int THREADS>
__device__ SfMass sf_over_block(SfMass mass) {
  __shared__ SfMass warps[THREADS / 32];
  mass = sf_over_warp(mass);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mass;
  __syncthreads();
  SfMass none = {0, 0, 0, 0, 0};
  return sf_over_warp(threadIdx.x % 32 < THREADS / 32 ? warps[threadIdx.x % 32] : none);
}

}  // namespace
