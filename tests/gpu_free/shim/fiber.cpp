#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the host shim's context switch is written for x86-64"
#endif

// Saves what a call preserves on the old stack, leaves its pointer in *save and takes the new stack. A fiber that has
// not run yet finds six zeros and the address of Fiber::run there.
extern "C" void mdlm_fast_shim_switch(void** save, void* load);
asm(R"(
.text
.type mdlm_fast_shim_switch, @function
.hidden mdlm_fast_shim_switch
.globl mdlm_fast_shim_switch
mdlm_fast_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mdlm_fast_shim_switch, .-mdlm_fast_shim_switch
)");

namespace mdlm_fast::shim {

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;  // its frames are larger
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

// Where fibers are resumed from. One OS thread at a time launches (block.cpp), so one of each is enough.
Fiber* running = nullptr;
void* resumer_stack_pointer = nullptr;

// Lowest byte and end of every stack. Never destroyed: fibers are when the process ends, in an order of their own.
auto& stacks = *new std::map<const char*, const char*>;
#if defined(__SANITIZE_ADDRESS__)
const void* resumer_base = nullptr;
std::size_t resumer_bytes = 0;
void* resumer_fake_stack = nullptr;
#endif

}  // namespace

Fiber::Fiber() {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  base_ = static_cast<char*>(memory) + page;
  stacks[base_] = base_ + kStackBytes;
}

Fiber::~Fiber() {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  munmap(base_ - page, page + kStackBytes);
  stacks.erase(base_);
}

bool Fiber::on_any_stack(const void* address) {
  const char* place = static_cast<const char*>(address);
  if (place >= running->base_ && place < running->base_ + kStackBytes) return true;  // by far the most
  const auto next = stacks.upper_bound(place);
  return next != stacks.begin() && place < std::prev(next)->second;
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base_, kStackBytes);  // a launch that failed left its frames
#endif
  void** top = reinterpret_cast<void**>(base_ + kStackBytes);
  *--top = nullptr;  // where a return address would be: a stack ends here, aligned as a call leaves it
  *--top = reinterpret_cast<void*>(&Fiber::run);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::resume() {
  running = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&resumer_fake_stack, base_, kStackBytes);
#endif
  mdlm_fast_shim_switch(&resumer_stack_pointer, stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(resumer_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
  Fiber* self = running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->fake_stack_, resumer_base, resumer_bytes);
#endif
  mdlm_fast_shim_switch(&self->stack_pointer_, resumer_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake_stack_, &resumer_base, &resumer_bytes);
#endif
}

void Fiber::run() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &resumer_base, &resumer_bytes);
#endif
  running->entry_(running->argument_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, resumer_base, resumer_bytes);  // this stack is done
#endif
  mdlm_fast_shim_switch(&running->stack_pointer_, resumer_stack_pointer);
  std::abort();  // nobody resumes a fiber that has returned
}

}  // namespace mdlm_fast::shim
