// Atomic operations: fibers do not interrupt each other, so plain ones. On global memory each counts as a load and a
// store of the element.
#pragma once

#include <type_traits>

#include "block.h"
#include "race.h"

namespace mdlm_fast::shim {

template <class T>
MDLM_FAST_SHIM_UNWATCHED T* atomic_place(T* address, const void* instruction, const Where& where) {
  check_access("atomic", sizeof(T), address, where);
  if (watching_races) note_access(Access::kAtomic, address, sizeof(T), instruction);
  if (preemptive) maybe_preempt();
  if (!in_shared_memory(address)) {
    note_load(sizeof(T), address);
    note_store(sizeof(T), address);
    ++counters.atomics;
  }
  return address;
}

}  // namespace mdlm_fast::shim

#define MDLM_FAST_SHIM_ATOMIC(name, expression)                                                                   \
  template <class T>                                                                                              \
  MDLM_FAST_SHIM_UNWATCHED T name(T* address, std::type_identity_t<T> value,                                      \
                                  const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()) {      \
    const T old = *mdlm_fast::shim::atomic_place(address, __builtin_return_address(0), where);                    \
    *address = static_cast<T>(expression);                                                                        \
    return old;                                                                                                   \
  }
MDLM_FAST_SHIM_ATOMIC(atomicAdd, old + value)
MDLM_FAST_SHIM_ATOMIC(atomicSub, old - value)
MDLM_FAST_SHIM_ATOMIC(atomicMin, old < value ? old : value)
MDLM_FAST_SHIM_ATOMIC(atomicMax, old > value ? old : value)
MDLM_FAST_SHIM_ATOMIC(atomicAnd, old & value)
MDLM_FAST_SHIM_ATOMIC(atomicOr, old | value)
MDLM_FAST_SHIM_ATOMIC(atomicXor, old ^ value)
MDLM_FAST_SHIM_ATOMIC(atomicExch, value)
MDLM_FAST_SHIM_ATOMIC(atomicInc, old >= value ? T{0} : old + 1)
MDLM_FAST_SHIM_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef MDLM_FAST_SHIM_ATOMIC

template <class T>
MDLM_FAST_SHIM_UNWATCHED T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
                                     const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()) {
  const T old = *mdlm_fast::shim::atomic_place(address, __builtin_return_address(0), where);
  if (old == expected) *address = value;
  return old;
}
