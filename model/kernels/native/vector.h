// Vectors of floats and the functions the kernels apply to them, for one instruction set.
//
// No include guard: fano.cpp includes this page once per instruction set, with FANO_SET (namespace), FANO_TARGET
// (function attribute) and FANO_WIDTH (floats per register). The compilers' vector extensions keep one text for all
// of them, so that the portable path is the same arithmetic at another width, on any architecture.

namespace FANO_SET {

constexpr int64_t WIDTH = FANO_WIDTH;
typedef float vec __attribute__((vector_size(FANO_WIDTH * 4)));
typedef uint32_t uvec __attribute__((vector_size(FANO_WIDTH * 4)));

// Minus zero, which leaves every x as it is: plus zero would not leave -0.
FANO_INLINE vec splat(float x) { return x - vec{}; }

// TAIL: only the first `count` channels exist; the others read as zero and are not written.
template <bool TAIL>
FANO_INLINE vec load(const float* from, int64_t count) {
  vec x{};
  if (TAIL) {
    for (int64_t i = 0; i < count; i++) x[i] = from[i];
  } else {
    __builtin_memcpy(&x, from, sizeof x);
  }
  return x;
}

template <bool TAIL>
FANO_INLINE void store(float* to, vec x, int64_t count) {
  if (TAIL) {
    for (int64_t i = 0; i < count; i++) to[i] = x[i];
  } else {
    __builtin_memcpy(to, &x, sizeof x);
  }
}

// 2^t for t <= 127; below -126 it is 2^-126. Relative error under 2e-7, and 2^0 is exactly 1: the polynomial of degree
// 5 with the least largest relative error on [-1/2, 1/2] under that condition. Adding 1.5 * 2^23 rounds to the nearest
// integer and leaves it in the low bits, from where the shift takes it into the exponent. A comparison with NaN is
// false, so NaN stays NaN.
FANO_INLINE vec exp2_below_127(vec t) {
  const vec lowest = splat(-126.0f);
  t = t < lowest ? lowest : t;
  const vec shifted = t + 12582912.0f;
  const vec f = t - (shifted - 12582912.0f);
  vec p = splat(1.3264727e-3f);
  p = p * f + 9.671513e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.93147e-1f;
  p = p * f + 1.0f;
  return (vec)((uvec)p + ((uvec)shifted << 23));
}

constexpr float LOG2_E = 1.44269504f;

FANO_INLINE vec exp_of(vec x) {
  const vec t = x * LOG2_E, highest = splat(127.0f);
  return exp2_below_127(t > highest ? highest : t);
}

// x * sigmoid(x)
FANO_INLINE vec silu(vec x) { return x / (1.0f + exp_of(-x)); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|). With s = e / (2 + e) <= 1/3, log1p(e) = 2 atanh(s): the first term left
// out of the series is below 1e-8.
FANO_INLINE vec softplus(vec x) {
  const vec zero{};
  const vec e = exp2_below_127((x < zero ? x : -x) * LOG2_E);
  const vec s = e / (e + 2.0f), q = s * s;
  vec p = splat(2.0f / 13);
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return p * s + (x > zero ? x : zero);
}

FANO_TARGET static void exp_all(const float* x, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) store<false>(y + i, exp_of(load<false>(x + i, WIDTH)), WIDTH);
  if (i < count) store<true>(y + i, exp_of(load<true>(x + i, count - i)), count - i);
}

}  // namespace FANO_SET
