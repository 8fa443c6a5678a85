// The record of a tile, as score_partials writes it and finish_scores reads it.
#pragma once

#include "memory.cuh"

namespace mdlm_fast::cuda {

// Floats of a record, and places in it.
inline constexpr int kPartialFields = 8, kBestField = 2, kRestField = 5, kMassField = 6;

// Ids are global, -1 = none. `rest` leaves out `top` itself, `mass_rest` leaves out `best` itself.
struct Partial {
  float top;            // maximum over the normaliser
  std::int32_t top_id;
  float best;           // best candidate
  std::int32_t best_id;
  float second;         // second best candidate
  float rest;           // sum over the normaliser of exp(z - top)
  float mass_rest;      // sum over the candidates of exp((z - best) / T)
  float moment;         // sum over the normaliser of d exp(d), d = z - top, or (z - top) / T
};

__device__ __forceinline__ Partial empty_partial() {
  return {-kInfinity, -1, -kInfinity, -1, -kInfinity, 0.0f, 0.0f, 0.0f};
}

// `record` is [8] floats, 16-byte aligned, ids as int32 bit patterns.
__device__ __forceinline__ void store_partial(float* record, const Partial& p) {
  store_vector(record, {{as_bits(p.top), static_cast<std::uint32_t>(p.top_id), as_bits(p.best),
                         static_cast<std::uint32_t>(p.best_id)}});
  store_vector(record + 4, {{as_bits(p.second), as_bits(p.rest), as_bits(p.mass_rest), as_bits(p.moment)}});
}

// The fields of the candidates alone.
__device__ __forceinline__ void store_candidates(float* record, float best, std::int32_t best_id, float second,
                                                 float mass_rest) {
  store(record + 2, best);
  store(record + 3, as_float(static_cast<std::uint32_t>(best_id)));
  store(record + 4, second);
  store(record + kMassField, mass_rest);
}

__device__ __forceinline__ Partial load_partial(const float* record) {
  const Vector* vectors = reinterpret_cast<const Vector*>(record);
  const Vector a = load(vectors), b = load(vectors + 1);
  return {as_float(a.words[0]), static_cast<std::int32_t>(a.words[1]), as_float(a.words[2]),
          static_cast<std::int32_t>(a.words[3]), as_float(b.words[0]), as_float(b.words[1]), as_float(b.words[2]),
          as_float(b.words[3])};
}

}  // namespace mdlm_fast::cuda
