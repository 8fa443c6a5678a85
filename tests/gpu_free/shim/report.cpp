#include "report.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "threads.h"

namespace mdlm_fast::shim {

namespace {

std::string coordinates(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string activity(const Thread& thread) {
  if (thread.state == State::kReturned) return "returned";
  if (thread.operation == nullptr) return "run, before any barrier or warp operation";
  const std::string place = std::string(thread.operation) + " at " + text_of(thread.where);
  return (thread.state == State::kRunnable ? "run, last seen in " : "wait in ") + place;
}

// What all threads of a block do, those that do the same together.
std::string describe_block(const Block& block) {
  std::map<std::string, std::vector<unsigned>> groups;
  for (const Thread& thread : block.threads) groups[activity(thread)].push_back(thread.index);
  std::string text = "block " + coordinates(block.index) + ":";
  for (const auto& [what, threads] : groups) text += " threads " + ranges(threads) + " " + what + ";";
  text.pop_back();
  return text;
}

const char* headline(const Block& block) {
  for (const Thread& thread : block.threads)
    if (thread.state == State::kAtWarpOperation) return "a warp operation waits for lanes that never arrive";
  if (block.at_block_barrier > 0) return "divergent barrier: not all threads of the block come to it";
  return "the grid barrier waits for threads that never arrive";
}

}  // namespace

std::string ranges(const std::vector<unsigned>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t j = i;
    while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]);
    if (j > i) text += "-" + std::to_string(numbers[j]);
    i = j + 1;
  }
  return text;
}

std::string text_of(const Where& where) {
  const char* name = std::strrchr(where.file_name(), '/');
  return std::string(name ? name + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

bool same_place(const Thread& a, const Thread& b) {
  const auto same = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.where.line() == b.where.line() && same(a.operation, b.operation) &&
         same(a.where.file_name(), b.where.file_name());
}

std::string describe_thread(const Thread& thread) {
  return "thread " + std::to_string(thread.index) + " of block " + coordinates(thread.block->index) + " in " +
         thread.operation + " at " + text_of(thread.where);
}

std::string describe_deadlock(const Launch& launch) {
  for (const auto& block : launch.blocks)
    if (block->returned < block->threads.size() && block->at_grid_barrier < block->threads.size())
      return std::string(headline(*block)) + ": " + describe_block(*block);
  std::string text = "the grid barrier waits for threads that never arrive:";
  for (const auto& block : launch.blocks) text += " " + describe_block(*block) + ".";
  return text;
}

void fail(const std::string& what, const Where& where) {
  if (current.running == nullptr) throw std::runtime_error(text_of(where) + ": " + what);
  const Thread& thread = *current.running;
  current.error = text_of(where) + ": " + what + " [thread " + std::to_string(thread.index) + " of block " +
                  coordinates(thread.block->index) + "]";
  Fiber::suspend();
  std::abort();  // nobody resumes it
}

void note_load(std::size_t bytes, const void* address) {
  counters.bytes_loaded += bytes;
  sectors_loaded.add(reinterpret_cast<std::uintptr_t>(address), bytes);
}

void note_store(std::size_t bytes, const void* address) {
  counters.bytes_stored += bytes;
  sectors_stored.add(reinterpret_cast<std::uintptr_t>(address), bytes);
}

void fail_access(const char* kind, std::size_t bytes, const void* address, const Where& where) {
  char place[32];
  std::snprintf(place, sizeof place, "%p", address);
  const char* why = address == nullptr ? " through a null pointer" : " at a misaligned address";
  std::string last;
  if (current.running != nullptr && current.running->operation != nullptr)
    last = ", last seen in " + std::string(current.running->operation) + " at " + text_of(current.running->where);
  fail(std::string(kind) + " of " + std::to_string(bytes) + " bytes" + why + ", " + place + last, where);
}

}  // namespace mdlm_fast::shim
