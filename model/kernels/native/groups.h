// Products with int8 weights. No include guard: see vector.h. model/layers/groups.py is the specification.
//
// GROUP inputs of an output share a scale, and so do GROUP neighbours in a row of activations. The products of a group
// are summed up in integers, without rounding; the groups are summed up in float32 in their order. A strip holds two
// groups after another: their scales in bfloat16, 16 of the one and 16 of the other, then their weights, in one lane of
// 32 bits after another an output's weights for four inputs. Weights lie there with 128 added: vpdpbusd multiplies
// unsigned bytes by signed ones, and what the 128 add to a sum is the same for all outputs, so that it is taken off
// where the sum begins. FANO_VNNI: the instruction set has vpdpbusd.

namespace FANO_SET {

typedef int32_t ivec __attribute__((vector_size(FANO_WIDTH * 4)));
typedef int8_t bytevec __attribute__((vector_size(FANO_WIDTH)));

// To nearest, ties to even, as integers.
FANO_INLINE ivec nearest(vec x) {
#if defined(FANO_AVX512)
  return (ivec)_mm512_cvtps_epi32((__m512)x);
#elif defined(FANO_AVX2)
  return (ivec)_mm256_cvtps_epi32((__m256)x);
#else
  // 1.5 * 2^23 leaves the integer in the low bits.
  return (ivec)(x + 12582912.0f) - 0x4b400000;
#endif
}

FANO_INLINE uint32_t most_of(uvec x) {
#ifdef FANO_AVX512
  return _mm512_reduce_max_epu32((__m512i)x);
#else
  uint32_t most = x[0];
  for (int64_t lane = 1; lane < WIDTH; lane++) most = x[lane] > most ? x[lane] : most;
  return most;
#endif
}

FANO_INLINE int32_t total_of(ivec x) {
#ifdef FANO_AVX512
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t total = x[0];
  for (int64_t lane = 1; lane < WIDTH; lane++) total += x[lane];
  return total;
#endif
}

// Of a group that is all smaller nothing is left: 127 / peak must not overflow.
constexpr float LEAST_PEAK = 1e-36f;

// A row of activations as product() reads it: its integers, then a scale for each group, then what each group's sum
// begins with. A group's largest magnitude becomes 127. Magnitudes are compared as integers, so that NaN is the largest
// and the scale is NaN: it does not disappear.
FANO_INLINE void arrange(const float* row, int64_t size, int64_t depth, int8_t* to) {
  float* scales = (float*)(to + depth);
  int32_t* starts = (int32_t*)(scales + depth / GROUP);
  for (int64_t g = 0; g < depth / GROUP; g++, to += GROUP) {
    const float* from = row + g * GROUP;
    float filled[GROUP];
    if ((g + 1) * GROUP > size) {
      for (int64_t i = 0; i < GROUP; i++) filled[i] = g * GROUP + i < size ? from[i] : 0;
      from = filled;
    }
    uvec most{};
    for (int64_t i = 0; i < GROUP; i += WIDTH) {
      const uvec magnitude = (uvec)load<false>(from + i, WIDTH) & 0x7fffffffu;
      most = magnitude > most ? magnitude : most;
    }
    const uint32_t bits = most_of(most);
    float peak;
    __builtin_memcpy(&peak, &bits, sizeof peak);
    const float inverse = peak > LEAST_PEAK ? 127.0f / peak : 0;
    ivec sum{};
    for (int64_t i = 0; i < GROUP; i += WIDTH) {
      const ivec found = nearest(load<false>(from + i, WIDTH) * inverse);
      const bytevec low = __builtin_convertvector(found, bytevec);
      sum += found;
      __builtin_memcpy(to + i, &low, sizeof low);
    }
    scales[g] = peak / 127.0f;
    starts[g] = -128 * total_of(sum);
  }
}

// The integer sums of one group: TOKENS rows from `x` on with STRIPS strips from `weight` on; `starts` as arrange()
// wrote them, `stride` bytes apart like the rows.
#ifdef FANO_VNNI
template <int TOKENS, int STRIPS>
FANO_INLINE void sum_group(const int8* weight, int64_t strip, const int8_t* x, int64_t stride, const int8_t* starts,
                           ivec (*sums)[STRIPS * LANES]) {
  for (int t = 0; t < TOKENS; t++) {
    int32_t start;
    __builtin_memcpy(&start, starts + t * stride, sizeof start);
    for (int n = 0; n < STRIPS; n++) sums[t][n] = (ivec)_mm512_set1_epi32(start);
  }
  for (int64_t k = 0; k < GROUP; k += 4) {
    __m512i held[STRIPS];
    for (int n = 0; n < STRIPS; n++) {
      const int8* from = weight + n * strip + k * STRIP;
      held[n] = _mm512_loadu_si512(from);
      // Else gcc loads it again for every token, and loads become the bound.
      __asm__("" : "+v"(held[n]));
    }
    for (int t = 0; t < TOKENS; t++) {
      int32_t four;
      __builtin_memcpy(&four, x + t * stride + k, sizeof four);
      const __m512i present = _mm512_set1_epi32(four);
      for (int n = 0; n < STRIPS; n++) {
        sums[t][n] = (ivec)_mm512_dpbusd_epi32((__m512i)sums[t][n], held[n], present);
      }
    }
  }
}
#elif defined(FANO_AVX2)
// vpmaddubsw adds two products in 16 bits, where those of 255 and 127 do not fit. So it is given magnitudes of the
// activations, and weights that took over their signs: 2 * 127 * 127 fits.
template <int TOKENS, int STRIPS>
FANO_INLINE void sum_group(const int8* weight, int64_t strip, const int8_t* x, int64_t stride, const int8_t*,
                           ivec (*sums)[STRIPS * LANES]) {
  for (int t = 0; t < TOKENS; t++) {
    for (int n = 0; n < STRIPS * LANES; n++) sums[t][n] = ivec{};
  }
  const __m256i offset = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
  for (int64_t k = 0; k < GROUP; k += 4) {
    __m256i held[STRIPS * LANES];
    for (int n = 0; n < STRIPS * LANES; n++) {
      const int8* from = weight + n / LANES * strip + k * STRIP + n % LANES * 4 * WIDTH;
      held[n] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)from), offset);
    }
    for (int t = 0; t < TOKENS; t++) {
      int32_t four;
      __builtin_memcpy(&four, x + t * stride + k, sizeof four);
      const __m256i present = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(present);
      for (int n = 0; n < STRIPS * LANES; n++) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(held[n], present));
        sums[t][n] += (ivec)_mm256_madd_epi16(pairs, ones);
      }
    }
  }
}
#else
// In floats, which hold every sum of a group exactly: 32 * 127 * 127 is less than 2^24.
template <int TOKENS, int STRIPS>
FANO_INLINE void sum_group(const int8* weight, int64_t strip, const int8_t* x, int64_t stride, const int8_t*,
                           vec (*sums)[STRIPS * LANES]) {
  for (int t = 0; t < TOKENS; t++) {
    for (int n = 0; n < STRIPS * LANES; n++) sums[t][n] = vec{};
  }
  for (int64_t k = 0; k < GROUP; k += 4) {
    for (int n = 0; n < STRIPS * LANES; n++) {
      const int8* from = weight + n / LANES * strip + k * STRIP + n % LANES * 4 * WIDTH;
      uvec fours;
      __builtin_memcpy(&fours, from, sizeof fours);
      fours ^= 0x80808080u;
      for (int i = 0; i < 4; i++) {
        const vec held = __builtin_convertvector((ivec)(fours << (24 - 8 * i)) >> 24, vec);
        for (int t = 0; t < TOKENS; t++) sums[t][n] = held * splat(x[t * stride + k + i]) + sums[t][n];
      }
    }
  }
}
#endif

FANO_INLINE vec as_floats(ivec x) { return __builtin_convertvector(x, vec); }

FANO_INLINE vec as_floats(vec x) { return x; }

#if defined(FANO_VNNI) || defined(FANO_AVX2)
typedef ivec group_sum;
#else
typedef vec group_sum;
#endif

template <int TOKENS, int STRIPS>
FANO_INLINE void sum_strips(const int8* weight, int64_t strip, const int8_t* x, int64_t stride, int64_t depth,
                            vec (*sums)[STRIPS * LANES]) {
  const int64_t num_groups = depth / GROUP;
  for (int64_t g = 0; g < num_groups; g++) {
    const int8* pair = weight + g / 2 * STRIP * PAIR_BYTES;
    const int8_t *scales = x + depth + g * sizeof(float), *starts = scales + num_groups * sizeof(float);
    group_sum found[TOKENS][STRIPS * LANES];
    sum_group<TOKENS, STRIPS>(pair + STRIP * (2 * sizeof(bf16) + g % 2 * GROUP), strip, x + g * GROUP, stride, starts,
                              found);
    for (int n = 0; n < STRIPS * LANES; n++) {
      const vec scale = widen((const bf16*)(pair + n / LANES * strip) + g % 2 * STRIP + n % LANES * WIDTH);
      for (int t = 0; t < TOKENS; t++) {
        float own;
        __builtin_memcpy(&own, scales + t * stride, sizeof own);
        sums[t][n] = as_floats(found[t][n]) * (scale * splat(own)) + sums[t][n];
      }
    }
  }
}

}  // namespace FANO_SET
