// A stack of its own and the switch to and from it.
#pragma once

#include <cstddef>

namespace mdlm_fast::shim {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry(argument) on this fiber's stack. What the fiber did before is forgotten.
  void start(void (*entry)(void*), void* argument);
  // Called outside of all fibers: runs this one until it suspends itself or its entry returns.
  void resume();
  // Called in a fiber: goes back to where it was resumed.
  static void suspend();
  // Whether the address is on the stack of a fiber.
  static bool on_any_stack(const void* address);

 private:
  static void run();

  char* base_;      // the lowest usable byte; a page that faults lies below
  void* stack_pointer_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace mdlm_fast::shim
