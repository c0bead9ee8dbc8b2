// Products of a matrix with rows of activations, and what stands between them. No include guard: see vector.h.
//
// A matrix lies in strips of STRIP outputs. Within a strip the weights of all its outputs for one input (float), or
// for a pair of inputs (bfloat16), are neighbours: one register holds them, and an activation is given to all of them.
// Every sum is taken in the order of the inputs, whatever is computed beside it, so a row's result depends neither on
// its neighbours nor on their number nor on the threads. FANO_DOTS: the instruction set multiplies pairs of bfloat16,
// so that activations are rounded to it before a product with such weights, as torch does.

namespace FANO_SET {

typedef uint16_t bf16vec __attribute__((vector_size(FANO_WIDTH * 2)));

FANO_INLINE vec widen(const float* from) { return load<false>(from, WIDTH); }

FANO_INLINE vec widen(const bf16* from) {
  bf16vec x;
  __builtin_memcpy(&x, from, sizeof x);
  return (vec)(__builtin_convertvector(x, uvec) << 16);
}

typedef float quad __attribute__((vector_size(16)));

// Query heads that attend together.
constexpr int HEAD_TILE = WIDTH >= 16 ? 3 : 2;

FANO_INLINE quad fold(vec x) {
  quad parts[WIDTH / 4], sum{};
  __builtin_memcpy(parts, &x, sizeof x);
  for (int64_t i = 0; i < WIDTH / 4; i++) sum += parts[i];
  return sum;
}

FANO_INLINE float sum_of(vec x) {
  const quad q = fold(x);
  return (q[0] + q[1]) + (q[2] + q[3]);
}

// The sums of four vectors, side by side.
#ifdef FANO_AVX512
FANO_INLINE quad sums_of(const vec* x) {
  const __m512 a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
  // In each quarter of the registers: the sums of its pairs, then of the quarter.
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m128 low = _mm_add_ps(_mm512_castps512_ps128(all), _mm512_extractf32x4_ps(all, 1));
  const __m128 high = _mm_add_ps(_mm512_extractf32x4_ps(all, 2), _mm512_extractf32x4_ps(all, 3));
  return (quad)_mm_add_ps(low, high);
}
#else
FANO_INLINE quad sums_of(const vec* x) {
  const quad a = fold(x[0]), b = fold(x[1]), c = fold(x[2]), d = fold(x[3]);
  const quad ab = FANO_SHUFFLE(a, b, 0, 4, 2, 6) + FANO_SHUFFLE(a, b, 1, 5, 3, 7);
  const quad cd = FANO_SHUFFLE(c, d, 0, 4, 2, 6) + FANO_SHUFFLE(c, d, 1, 5, 3, 7);
  return FANO_SHUFFLE(ab, cd, 0, 1, 4, 5) + FANO_SHUFFLE(ab, cd, 2, 3, 6, 7);
}
#endif

FANO_INLINE float square_sum(const float* x, int64_t size) {
  vec sum{};
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) {
    const vec present = load<false>(x + i, WIDTH);
    sum = present * present + sum;
  }
  float found = sum_of(sum);
  for (; i < size; i++) found += x[i] * x[i];
  return found;
}

// Registers that hold one strip.
constexpr int LANES = STRIP / WIDTH;

// As what activations meet the weights.
template <class Weight>
struct Met {
  typedef float type;
};

#ifdef FANO_DOTS
template <>
struct Met<bf16> {
  typedef bf16 type;
};
#endif

template <>
struct Met<int8> {
  typedef int8_t type;
};

// A row of activations as product() reads it, with zeros up to depth_of<Weight>(size).
FANO_INLINE void arrange(const float* row, int64_t size, int64_t depth, float* to) {
  __builtin_memcpy(to, row, size * sizeof(float));
  for (int64_t i = size; i < depth; i++) to[i] = 0;
}

FANO_INLINE void arrange(const float* row, int64_t size, int64_t depth, bf16* to) {
  int64_t i = 0;
#ifdef FANO_DOTS
  for (; i + WIDTH <= size; i += WIDTH) {
    const auto held = _mm512_cvtneps_pbh(_mm512_loadu_ps(row + i));
    __builtin_memcpy(to + i, &held, sizeof held);
  }
#endif
  for (; i < size; i++) narrow(row[i], to + i);
  for (; i < depth; i++) to[i] = 0;
}

// The sums of TOKENS rows of activations, `stride` apart, with STRIPS strips, `strip` weights apart.
template <int TOKENS, int STRIPS>
FANO_INLINE void sum_strips(const float* weight, int64_t strip, const float* x, int64_t stride, int64_t depth,
                            vec (*sums)[STRIPS * LANES]) {
  for (int64_t k = 0; k < depth; k++, weight += STRIP) {
    vec held[STRIPS * LANES];
    for (int n = 0; n < STRIPS * LANES; n++) {
      const float* from = weight + n / LANES * strip + n % LANES * WIDTH;
      held[n] = load<false>(from, WIDTH);
    }
    for (int t = 0; t < TOKENS; t++) {
      const vec present = splat(x[t * stride + k]);
      for (int n = 0; n < STRIPS * LANES; n++) sums[t][n] = held[n] * present + sums[t][n];
    }
  }
}

#ifdef FANO_DOTS
template <int TOKENS, int STRIPS>
FANO_INLINE void sum_strips(const bf16* weight, int64_t strip, const bf16* x, int64_t stride, int64_t depth,
                            vec (*sums)[STRIPS]) {
  for (int64_t k = 0; k < depth; k += 2, weight += 2 * STRIP) {
    __m512bh held[STRIPS];
    for (int n = 0; n < STRIPS; n++) {
      __builtin_memcpy(&held[n], weight + n * strip, sizeof held[n]);
    }
    for (int t = 0; t < TOKENS; t++) {
      int32_t pair;
      __builtin_memcpy(&pair, x + t * stride + k, sizeof pair);
      const __m512i both = _mm512_set1_epi32(pair);
      __m512bh present;
      __builtin_memcpy(&present, &both, sizeof present);
      for (int n = 0; n < STRIPS; n++) {
        sums[t][n] = (vec)_mm512_dpbf16_ps((__m512)sums[t][n], held[n], present);
      }
    }
  }
}
#else
// Two bfloat16 lie in one 32-bit lane, the first in the low half: a shift and a mask widen them.
template <int TOKENS, int STRIPS>
FANO_INLINE void sum_strips(const bf16* weight, int64_t strip, const float* x, int64_t stride, int64_t depth,
                            vec (*sums)[STRIPS * LANES]) {
  for (int64_t k = 0; k < depth; k += 2, weight += 2 * STRIP) {
    for (int n = 0; n < STRIPS * LANES; n++) {
      const bf16* from = weight + n / LANES * strip + n % LANES * 2 * WIDTH;
      uvec pairs;
      __builtin_memcpy(&pairs, from, sizeof pairs);
      const vec first = (vec)(pairs << 16), second = (vec)(pairs & 0xffff0000u);
      for (int t = 0; t < TOKENS; t++) {
        sums[t][n] = first * splat(x[t * stride + k]) + sums[t][n];
        sums[t][n] = second * splat(x[t * stride + k + 1]) + sums[t][n];
      }
    }
  }
}
#endif

}  // namespace FANO_SET

#include "groups.h"

namespace FANO_SET {

// TAIL: only the first `count` outputs exist.
template <bool ADD, bool TAIL, int TOKENS, int STRIPS, class Weight>
FANO_TARGET static void multiply_strips(const Weight* weight, int64_t strip, const typename Met<Weight>::type* x,
                                        int64_t stride, int64_t depth, float* out, int64_t out_stride, int64_t count) {
  vec sums[TOKENS][STRIPS * LANES];
  for (int t = 0; t < TOKENS; t++) {
    for (int n = 0; n < STRIPS * LANES; n++) sums[t][n] = vec{};
  }
  sum_strips<TOKENS, STRIPS>(weight, strip, x, stride, depth, sums);
  for (int t = 0; t < TOKENS; t++) {
    for (int n = 0; n < STRIPS * LANES; n++) {
      float* place = out + t * out_stride + n * WIDTH;
      const int64_t left = count - n * WIDTH;
      if (!TAIL || left >= WIDTH) {
        store<false>(place, ADD ? load<false>(place, WIDTH) + sums[t][n] : sums[t][n], WIDTH);
      } else if (left > 0) {
        store<true>(place, ADD ? load<true>(place, left) + sums[t][n] : sums[t][n], left);
      }
    }
  }
}

// Tokens and strips whose sums the registers hold beside what is being multiplied. Fewer tokens are bound by fetching the
// weights and pass one strip at a time: memory is fastest as a single stream, and without being asked for ahead.
template <class Weight>
struct Tile {
  static constexpr int ROWS = WIDTH >= 16 ? 8 : WIDTH >= 8 ? 6 : 2, STRIPS = WIDTH >= 16 ? 3 : 1;
};

// Beside the sums of all groups, the registers hold those of one.
template <>
struct Tile<int8> {
  static constexpr int ROWS = WIDTH >= 16 ? 4 : 2, STRIPS = 1;
};

// Tokens from `t` on, ROWS at a time, then half as many and so on.
template <bool ADD, bool TAIL, int ROWS, int STRIPS, class Weight>
FANO_INLINE void multiply_rows(const Weight* weight, int64_t strip, const typename Met<Weight>::type* x, int64_t stride,
                               int64_t depth, float* out, int64_t out_stride, int64_t t, int64_t num_tokens,
                               int64_t count) {
  for (; t + ROWS <= num_tokens; t += ROWS) {
    multiply_strips<ADD, TAIL, ROWS, STRIPS>(weight, strip, x + t * stride, stride, depth, out + t * out_stride,
                                             out_stride, count);
  }
  if constexpr (ROWS > 1) {
    multiply_rows<ADD, TAIL, ROWS / 2, STRIPS>(weight, strip, x, stride, depth, out, out_stride, t, num_tokens, count);
  }
}

// The part of `count` that is `part`'s of `num_parts`.
FANO_INLINE int64_t share(int64_t count, int64_t part, int64_t num_parts) { return count * part / num_parts; }

// out[t, n] (+)= sum over k of matrix[n, k] * x[t, k], for `part`'s strips of `num_parts`; all tokens pass a strip, or a
// few, while it is in the cache. `x` is arranged, `stride` elements from row to row.
template <bool ADD, class Weight>
FANO_TARGET static void product(const Weight* weight, const typename Met<Weight>::type* x, int64_t stride,
                                int64_t num_tokens, int64_t num_rows, int64_t size, float* out, int64_t out_stride,
                                int64_t part, int64_t num_parts) {
  constexpr int ROWS = Tile<Weight>::ROWS, STRIPS = Tile<Weight>::STRIPS;
  const int64_t depth = depth_of<Weight>(size), strip = strip_of<Weight>(depth);
  const int64_t num_strips = (num_rows + STRIP - 1) / STRIP, whole = num_rows / STRIP;
  const int64_t last = share(num_strips, part + 1, num_parts), last_whole = last < whole ? last : whole;
  int64_t j = share(num_strips, part, num_parts);
  if (num_tokens >= ROWS) {
    for (; j + STRIPS <= last_whole; j += STRIPS) {
      multiply_rows<ADD, false, ROWS, STRIPS>(weight + j * strip, strip, x, stride, depth, out + j * STRIP, out_stride,
                                              0, num_tokens, 0);
    }
  }
  for (; j < last_whole; j++) {
    multiply_rows<ADD, false, ROWS, 1>(weight + j * strip, strip, x, stride, depth, out + j * STRIP, out_stride, 0,
                                       num_tokens, 0);
  }
  if (j < last) {
    multiply_rows<ADD, true, ROWS, 1>(weight + j * strip, strip, x, stride, depth, out + j * STRIP, out_stride, 0,
                                      num_tokens, num_rows - j * STRIP);
  }
}

FANO_INLINE float peak_of(const float* x, int64_t size) {
  vec most = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) {
    const vec present = load<false>(x + i, WIDTH);
    most = present > most ? present : most;
  }
  float peak = most[0];
  for (int64_t lane = 1; lane < WIDTH; lane++) peak = most[lane] > peak ? most[lane] : peak;
  for (; i < size; i++) peak = x[i] > peak ? x[i] : peak;
  return peak;
}

FANO_INLINE float total_of(const float* x, int64_t size) {
  vec sum{};
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) sum += load<false>(x + i, WIDTH);
  float total = sum_of(sum);
  for (; i < size; i++) total += x[i];
  return total;
}

// One row divided by its root mean square, times a gain (arXiv 1910.07467). `out` may be `x`.
FANO_TARGET static void rms_norm(const float* x, const float* gain, float eps, float* out, int64_t size) {
  const float scale = 1.0f / __builtin_sqrtf(square_sum(x, size) / size + eps);
  for (int64_t i = 0; i < size; i++) out[i] = x[i] * scale * gain[i];
}

// out[i] = silu(gate[i]) * up[i]
FANO_TARGET static void gate(const float* gates, const float* ups, float* out, int64_t size) {
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) {
    store<false>(out + i, silu(load<false>(gates + i, WIDTH)) * load<false>(ups + i, WIDTH), WIDTH);
  }
  const int64_t rest = size - i;
  if (rest) store<true>(out + i, silu(load<true>(gates + i, rest)) * load<true>(ups + i, rest), rest);
}

}  // namespace FANO_SET
