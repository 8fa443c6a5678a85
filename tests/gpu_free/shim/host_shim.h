// CUDA C++ on the CPU: what csrc/cuda needs of nvcc and of the CUDA runtime, so that g++ compiles the kernels
// unchanged (-DMDLM_FAST_SHIM) and they run here, checked.
//
// How a kernel runs. Every thread of a block is a fiber; all fibers run on the calling thread, one at a time, and
// switch only where threads may wait for each other: at barriers and at warp operations. A launch runs its blocks one
// after another; a cooperative launch keeps all blocks alive and runs them in turns.
//
// Which thread runs next is the schedule: forward (lowest warp, then lowest lane), reverse, or random with a seed. In
// the random schedule a thread may also lose its turn at a store or an atomic. A kernel that lacks a barrier gives
// different bits under different schedules; one that has them all gives the same bits under each.
//
// Shared memory. Dynamic shared memory lies between guard zones. Static __shared__ variables are thread_local variables
// of the one OS thread, and the library's thread-local segment is saved and restored when another block gets its turn.
// Both start with a fill that differs from schedule to schedule, so that reading it uninitialised shows.
//
// Races. Built with -fsanitize=thread, a kernel announces its loads and stores, and the shim reports two of them that
// no barrier orders (race.h), whatever the schedule.
//
// What goes wrong inside a kernel (report.h) ends the launch with cudaErrorLaunchFailure, and cudaGetErrorString then
// says what happened, which threads were where, and at which source line.
//
// Chosen from outside: MDLM_FAST_SHIM_SCHEDULE=forward|reverse|random:SEED, or the extern "C" functions of control.cpp.
#pragma once

// Before the keywords become macros: the standard library uses some of them as attributes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "runtime_types.h"  // keywords, dim3, cudaError_t, occupancy, cudaMemsetAsync
#include "report.h"         // errors and counters
#include "block.h"          // launch, shared memory, barriers
#include "warp.h"           // shuffles, votes, reductions over a warp
#include "atomics.h"        // atomic operations
#include "arithmetic.h"     // bit counting, reinterpretation of bits, rounding
