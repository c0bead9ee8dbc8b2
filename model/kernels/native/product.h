// Products of a matrix with few rows of activations, and what stands between them. No include guard: see vector.h.
// With one row a product is bound by reading the weights once; every sum is taken in an order that depends on the
// matrix alone, so a row's result does not depend on its neighbours. FANO_DOTS: the instruction set multiplies pairs of
// bfloat16, so that activations are rounded to it before a product with such weights, as torch does.

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

template <class Weight>
FANO_INLINE float dot(const Weight* weight, const float* x, int64_t size) {
  vec sum{};
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) sum = widen(weight + i) * load<false>(x + i, WIDTH) + sum;
  float found = sum_of(sum);
  for (; i < size; i++) found += widen_one(weight[i]) * x[i];
  return found;
}

// The activations as `rows_of` wants them: of T tokens in `apart`, one row after another.
FANO_INLINE const float* arranged(const float*, const float* x, float*, int64_t, int64_t) { return x; }

#ifdef FANO_DOTS
FANO_INLINE const bf16* arranged(const bf16*, const float* x, float* apart, int64_t num_tokens, int64_t size) {
  bf16* rounded = (bf16*)apart;
  const int64_t count = num_tokens * size;
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) {
    const auto held = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
    __builtin_memcpy(rounded + i, &held, sizeof held);
  }
  for (; i < count; i++) narrow(x[i], rounded + i);
  return rounded;
}
#else
// Two bfloat16 lie in one 32-bit lane, the even one in the low half: with the
// even and the odd activations apart, a shift and a mask widen them without moving anything between lanes.
FANO_INLINE const float* arranged(const bf16*, const float* x, float* apart, int64_t num_tokens, int64_t size) {
  for (int64_t t = 0; t < num_tokens; t++) {
    const float* from = x + t * size;
    float *even = apart + t * size, *odd = even + (size + 1) / 2;
    for (int64_t i = 0; i < size / 2; i++) {
      even[i] = from[2 * i];
      odd[i] = from[2 * i + 1];
    }
    if (size % 2) even[size / 2] = from[size - 1];
  }
  return apart;
}
#endif

// How far ahead of the row in work its successors are asked for.
constexpr int64_t PREFETCH_BYTES = 2048;

// Tokens that pass a row together: as many sums as registers hold beside what is being multiplied.
constexpr int TILE = WIDTH >= 16 ? 4 : 2;

// ROWS rows of weights, `stride` elements from one to the next, with TOKENS rows of activations, `size` apart. Each
// sum is taken in the same order whatever ROWS and TOKENS are; independent sums hide the latency of the additions.
template <int ROWS, int TOKENS>
FANO_INLINE void rows_of(const float* weight, const float* x, int64_t size, int64_t stride, vec (*sums)[ROWS],
                         float (*rest)[ROWS]) {
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) {
    vec present[TOKENS];
    for (int t = 0; t < TOKENS; t++) present[t] = load<false>(x + t * size + i, WIDTH);
    for (int row = 0; row < ROWS; row++) {
      __builtin_prefetch(weight + row * stride + i + PREFETCH_BYTES / 4);
      const vec held = load<false>(weight + row * stride + i, WIDTH);
      for (int t = 0; t < TOKENS; t++) sums[t][row] = held * present[t] + sums[t][row];
    }
  }
  for (int t = 0; t < TOKENS; t++) {
    for (int row = 0; row < ROWS; row++) {
      for (int64_t k = i; k < size; k++) rest[t][row] += weight[row * stride + k] * x[t * size + k];
    }
  }
}

#ifdef FANO_DOTS
FANO_INLINE __m512bh pairs_of(const bf16* from) {
  __m512bh pairs;
  __builtin_memcpy(&pairs, from, sizeof pairs);
  return pairs;
}

template <int ROWS, int TOKENS>
FANO_INLINE void rows_of(const bf16* weight, const bf16* x, int64_t size, int64_t stride, vec (*sums)[ROWS],
                         float (*rest)[ROWS]) {
  int64_t i = 0;
  for (; i + 2 * WIDTH <= size; i += 2 * WIDTH) {
    __m512bh present[TOKENS];
    for (int t = 0; t < TOKENS; t++) present[t] = pairs_of(x + t * size + i);
    for (int row = 0; row < ROWS; row++) {
      __builtin_prefetch(weight + row * stride + i + PREFETCH_BYTES / 2);
      const __m512bh held = pairs_of(weight + row * stride + i);
      for (int t = 0; t < TOKENS; t++) {
        sums[t][row] = (vec)_mm512_dpbf16_ps((__m512)sums[t][row], held, present[t]);
      }
    }
  }
  for (int t = 0; t < TOKENS; t++) {
    for (int row = 0; row < ROWS; row++) {
      for (int64_t k = i; k < size; k++) {
        rest[t][row] += widen_one(weight[row * stride + k]) * widen_one(x[t * size + k]);
      }
    }
  }
}
#else
template <int ROWS, int TOKENS>
FANO_INLINE void rows_of(const bf16* weight, const float* x, int64_t size, int64_t stride, vec (*sums)[ROWS],
                         float (*rest)[ROWS]) {
  const float* odd = x + (size + 1) / 2;
  int64_t i = 0;
  for (; 2 * (i + WIDTH) <= size; i += WIDTH) {
    vec evens[TOKENS], odds[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
      evens[t] = load<false>(x + t * size + i, WIDTH);
      odds[t] = load<false>(odd + t * size + i, WIDTH);
    }
    for (int row = 0; row < ROWS; row++) {
      __builtin_prefetch(weight + row * stride + 2 * i + PREFETCH_BYTES / 2);
      uvec pairs;
      __builtin_memcpy(&pairs, weight + row * stride + 2 * i, sizeof pairs);
      const vec even_weights = (vec)(pairs << 16), odd_weights = (vec)(pairs & 0xffff0000u);
      for (int t = 0; t < TOKENS; t++) {
        sums[t][row] = even_weights * evens[t] + sums[t][row];
        sums[t][row] = odd_weights * odds[t] + sums[t][row];
      }
    }
  }
  for (int t = 0; t < TOKENS; t++) {
    for (int row = 0; row < ROWS; row++) {
      for (int64_t k = 2 * i; k < size; k++) {
        rest[t][row] += widen_one(weight[row * stride + k]) * (k % 2 ? odd : x)[t * size + k / 2];
      }
    }
  }
}
#endif

template <bool ADD, int TOKENS, class Weight, class Activation>
FANO_INLINE void four_rows(const Weight* weight, const Activation* x, float* out, int64_t num_rows, int64_t size) {
  const int64_t quarter = num_rows / 4;
  vec sums[TOKENS][4] = {};
  float rest[TOKENS][4] = {};
  rows_of<4, TOKENS>(weight, x, size, quarter * size, sums, rest);
  for (int t = 0; t < TOKENS; t++) {
    const quad found = sums_of(sums[t]);
    float* place = out + t * num_rows;
    for (int64_t i = 0; i < 4; i++) place[i * quarter] = found[i] + rest[t][i] + (ADD ? place[i * quarter] : 0);
  }
}

// The part of `count` that is `part`'s of `num_parts`.
FANO_INLINE int64_t share(int64_t count, int64_t part, int64_t num_parts) { return count * part / num_parts; }

// out[t, n] (+)= weight[n, k] . x[t, k], for `part`'s rows n of `num_parts`; all tokens pass a row while it is in the
// cache. Four rows at a time, one from each quarter of the matrix: four streams through memory fetch twice as fast as
// one. `apart` is workspace for one row of activations per token.
template <bool ADD, class Weight>
FANO_TARGET static void product(const Weight* weight, const float* x, float* out, int64_t num_tokens, int64_t num_rows,
                                int64_t size, float* apart, int64_t part, int64_t num_parts) {
  const auto* activations = arranged(weight, x, apart, num_tokens, size);
  const int64_t quarter = num_rows / 4, last = share(quarter, part + 1, num_parts);
  for (int64_t row = share(quarter, part, num_parts); row < last; row++) {
    const Weight* from = weight + row * size;
    int64_t t = 0;
    for (; t + TILE <= num_tokens; t += TILE) {
      four_rows<ADD, TILE>(from, activations + t * size, out + t * num_rows + row, num_rows, size);
    }
    for (; t + 2 <= num_tokens; t += 2) {
      four_rows<ADD, 2>(from, activations + t * size, out + t * num_rows + row, num_rows, size);
    }
    if (t < num_tokens) four_rows<ADD, 1>(from, activations + t * size, out + t * num_rows + row, num_rows, size);
  }
  if (part + 1 < num_parts) return;
  for (int64_t row = 4 * quarter; row < num_rows; row++) {
    for (int64_t t = 0; t < num_tokens; t++) {
      vec sum[1][1] = {};
      float rest[1][1] = {};
      rows_of<1, 1>(weight + row * size, activations + t * size, size, 0, sum, rest);
      out[t * num_rows + row] = sum_of(sum[0][0]) + rest[0][0] + (ADD ? out[t * num_rows + row] : 0);
    }
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
  const float scale = 1.0f / __builtin_sqrtf(dot(x, x, size) / size + eps);
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
