// As much of Metal's language as the kernels use, in C++ on the CPU: threadgroups run one after the other, their threads
// as fibers. Attributes are ignored, so the host passes every argument in order.
#pragma once

#include <string.h>

#include "fibers.h"

#define kernel static
#define device
#define constant const
#define threadgroup static thread_local
// An address space too: no variable may be called so.
#define thread

typedef uint32_t uint;

struct uint2 {
  uint32_t x, y;
};

struct float2 {
  float x, y;
  float2(float x = 0, float y = 0) : x(x), y(y) {}
  float2 &operator+=(float2 other) { return x += other.x, y += other.y, *this; }
};

enum class mem_flags { mem_threadgroup };

inline void threadgroup_barrier(mem_flags) { fibers::barrier(); }

// What the lane at `lane ^ other` has now.
template <typename T>
T simd_shuffle_xor(T value, uint32_t other) {
  static_assert(sizeof(T) == 4, "an exchange is of 32 bits");
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = fibers::exchange(bits, (fibers::block.current ^ other) % fibers::WARP);
  memcpy(&value, &bits, 4);
  return value;
}

// Adds in the order that a butterfly over the lanes does.
template <typename T>
T simd_sum(T value) {
  for (uint32_t lane = fibers::WARP / 2; lane > 0; lane /= 2) value += simd_shuffle_xor(value, lane);
  return value;
}

inline float simd_max(float value) {
  for (uint32_t lane = fibers::WARP / 2; lane > 0; lane /= 2) value = fmaxf(value, simd_shuffle_xor(value, lane));
  return value;
}
