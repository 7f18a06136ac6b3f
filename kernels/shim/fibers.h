// Runs a grid of GPU threads on one CPU thread: each GPU thread of a block is a fiber, and a fiber goes on until it has
// to wait for others. Which fiber goes on first changes from round to round, so that a missing barrier shows.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

namespace fibers {

constexpr size_t STACK = 64 * 1024;
constexpr uint32_t WARP = 32;

// Where fibers meet: opens when as many have come as are expected.
struct Meeting {
  uint32_t expected = 0, come = 0;
  uint64_t opened = 0;
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[STACK]};
  ucontext_t start;
  jmp_buf here;
  bool begun, over;
};

// A block of threads that is running now.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  // What the lanes of each warp exchange.
  std::vector<uint32_t> lanes;
  uint32_t size = 0, current = 0, running = 0;
  uint64_t random = 88172645463325252u;
  std::function<void(uint32_t)> work;
  ucontext_t outside;
  jmp_buf scheduler;
  bool moved = false;
};

inline thread_local Block block;

[[noreturn]] inline void fail(const char *problem) {
  fprintf(stderr, "kernel shim: %s\n", problem);
  abort();
}

inline void pause() {
  if (_setjmp(block.fibers[block.current].here) == 0) _longjmp(block.scheduler, 1);
}

inline void open_if_full(Meeting &meeting) {
  if (meeting.come < meeting.expected || meeting.expected == 0) return;
  meeting.come = 0;
  meeting.opened++;
}

inline void meet(Meeting &meeting) {
  const uint64_t opened = meeting.opened;
  meeting.come++;
  block.moved = true;
  open_if_full(meeting);
  while (meeting.opened == opened) pause();
}

// The barrier of a block. Threads that returned are not waited for.
inline void barrier() { meet(block.all); }

// The bits that lane `lane` of this fiber's warp has now. All lanes must call it.
inline uint32_t exchange(uint32_t bits, uint32_t lane) {
  const uint32_t warp = block.current / WARP;
  if (block.warps[warp].expected != WARP) fail("an exchange in a warp of which threads have returned");
  block.lanes[block.current] = bits;
  meet(block.warps[warp]);
  const uint32_t found = block.lanes[warp * WARP + lane];
  meet(block.warps[warp]);
  return found;
}

inline void enter() {
  block.work(block.current);
  Fiber &fiber = block.fibers[block.current];
  fiber.over = true;
  block.moved = true;
  block.running--;
  Meeting &warp = block.warps[block.current / WARP];
  block.all.expected--;
  warp.expected--;
  if (warp.come > 0) fail("a thread returned while its warp waited for it");
  open_if_full(block.all);
  _longjmp(block.scheduler, 1);
}

inline void go_on(uint32_t index) {
  block.current = index;
  Fiber &fiber = block.fibers[index];
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

inline void prepare(uint32_t size) {
  if (size == 0 || size % WARP != 0) fail("a block is whole warps");
  if (block.fibers.size() < size) block.fibers.resize(size);
  block.warps.assign(size / WARP, Meeting{WARP, 0, 0});
  block.all = Meeting{size, 0, 0};
  block.lanes.assign(size, 0);
  block.size = block.running = size;
  for (uint32_t i = 0; i < size; i++) {
    Fiber &fiber = block.fibers[i];
    fiber.begun = fiber.over = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
  }
}

// Runs `work(thread)` for the `size` threads of a block.
inline void run_block(uint32_t size, std::function<void(uint32_t)> work) {
  block.work = std::move(work);
  prepare(size);
  while (block.running > 0) {
    block.random ^= block.random << 13;
    block.random ^= block.random >> 7;
    block.random ^= block.random << 17;
    // Every odd step visits all of a power of two; sizes that are none are passed over.
    const uint32_t first = block.random >> 32, step = block.random | 1;
    block.moved = false;
    for (uint32_t i = 0; i < 1024; i++) {
      const uint32_t index = (first + i * step) % 1024;
      if (index < size && !block.fibers[index].over) go_on(index);
    }
    if (!block.moved && block.running > 0) fail("threads wait for each other at different barriers");
  }
}

}  // namespace fibers
