// Mamba-1 selective scan and causal convolution for training: forward and backward over a forest of token segments.
//
// A segment is a run of tokens that continues another segment (its parent, which comes earlier) or begins from zeros.
// Several questions can so continue one reading of the same passages. fp32, token-major; lanes run over the inner width I.
//   h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t        y_t = C_t h_t + D u_t
// The forward pass keeps the state at every CHUNK-th token; the backward pass recomputes the states between.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int N = 16, W = 16, CHUNK = 16;
typedef float vec __attribute__((vector_size(4 * W)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec splat(float x) { return vec{} + x; }
inline float sum(vec v) { float s = 0; for (int i = 0; i < W; i++) s += v[i]; return s; }

// 2^t for t <= 0 (clamped at -126); relative error about 2e-7.
inline vec exp2_nonpositive(vec t) {
  t = t < splat(-126.f) ? splat(-126.f) : t;
  const float magic = 12582912.f;                       // 1.5 * 2^23: adding it rounds to the nearest integer
  vec shifted = t + magic, n = shifted - magic, f = t - n;
  vec p = splat(1.5403530e-4f);                         // Taylor series of 2^f, |f| <= 1/2
  p = p * f + 1.3333558e-3f; p = p * f + 9.6181291e-3f; p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f; p = p * f + 6.9314718e-1f; p = p * f + 1.f;
  ivec bits = ((ivec)shifted - (ivec)splat(magic) + 127) << 23;
  return p * (vec)bits;
}
inline vec sigmoid(vec x) {
  vec magnitude = x < splat(0.f) ? x : -x;
  vec e = exp2_nonpositive(magnitude * 1.44269504f);
  return (x < splat(0.f) ? e : splat(1.f)) / (1.f + e);
}

}  // namespace

// segments: [S][3] = first token, number of tokens, parent or -1. checkpoint_start: [S]. a2 = A * log2(e), [N, I].
// finals: [S, N, I] out. checkpoints: [sum of ceil(tokens / CHUNK), N, I] out.
extern "C" void scan_forward(const float* u, const float* dt, const float* a2, const float* b, const float* c,
                             const float* d, const int64_t* segments, const int64_t* checkpoint_start, int64_t S,
                             int64_t I, float* finals, float* checkpoints, float* y, int threads) {
  #pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < I; i += W) {
    vec A[N];
    for (int n = 0; n < N; n++) A[n] = load(a2 + n * I + i);
    vec skip = load(d + i);
    for (int64_t s = 0; s < S; s++) {
      const int64_t first = segments[3 * s], tokens = segments[3 * s + 1], parent = segments[3 * s + 2];
      vec H[N];
      for (int n = 0; n < N; n++) H[n] = parent < 0 ? splat(0.f) : load(finals + (parent * N + n) * I + i);
      for (int64_t j = 0; j < tokens; j++) {
        if (j % CHUNK == 0)
          for (int n = 0; n < N; n++) store(checkpoints + ((checkpoint_start[s] + j / CHUNK) * N + n) * I + i, H[n]);
        const int64_t t = first + j;
        vec uv = load(u + t * I + i), dv = load(dt + t * I + i), du = dv * uv, out = skip * uv;
        for (int n = 0; n < N; n++) {
          H[n] = exp2_nonpositive(dv * A[n]) * H[n] + du * b[t * N + n];
          out += H[n] * c[t * N + n];
        }
        store(y + t * I + i, out);
      }
      for (int n = 0; n < N; n++) store(finals + (s * N + n) * I + i, H[n]);
    }
  }
}

// Gradients of everything. dfinals [S, N, I], da [N, I], dd [I], db and dc [threads, T, N] must come zeroed.
// da is the gradient for A itself (natural logarithm), so a2 is divided by log2(e) inside.
extern "C" void scan_backward(const float* u, const float* dt, const float* a2, const float* b, const float* c,
                              const float* d, const int64_t* segments, const int64_t* checkpoint_start, int64_t S,
                              int64_t T, int64_t I, const float* checkpoints, const float* dy, float* dfinals,
                              float* du_out, float* ddt_out, float* da, float* db, float* dc, float* dd, int threads) {
  const int64_t lanes = I / W, share = (lanes + threads - 1) / threads;
  #pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int worker = 0; worker < threads; worker++) {
    const int64_t from = worker * share * W, to = (worker + 1) * share * W < I ? (worker + 1) * share * W : I;
    float *my_db = db + worker * T * N, *my_dc = dc + worker * T * N;
    std::vector<vec> h((CHUNK + 1) * N), decay(CHUNK * N), sum_b(CHUNK * N), sum_c(CHUNK * N);
    for (int64_t s = S - 1; s >= 0; s--) {
      const int64_t first = segments[3 * s], tokens = segments[3 * s + 1], parent = segments[3 * s + 2];
      for (int64_t k = (tokens - 1) / CHUNK; k >= 0; k--) {
        const int64_t t0 = first + k * CHUNK;
        const int m = (int)(tokens - k * CHUNK < CHUNK ? tokens - k * CHUNK : CHUNK);
        for (int x = 0; x < m * N; x++) sum_b[x] = sum_c[x] = splat(0.f);
        for (int64_t i = from; i < to; i += W) {
          vec A[N], dH[N], dA[N];
          for (int n = 0; n < N; n++) {
            A[n] = load(a2 + n * I + i);
            dA[n] = splat(0.f);
            dH[n] = load(dfinals + (s * N + n) * I + i);
            h[n] = load(checkpoints + ((checkpoint_start[s] + k) * N + n) * I + i);
          }
          for (int j = 0; j < m; j++) {
            const int64_t t = t0 + j;
            vec dv = load(dt + t * I + i), du = dv * load(u + t * I + i);
            for (int n = 0; n < N; n++) {
              vec e = exp2_nonpositive(dv * A[n]);
              decay[j * N + n] = e;
              h[(j + 1) * N + n] = e * h[j * N + n] + du * b[t * N + n];
            }
          }
          vec skip = load(d + i), dD = load(dd + i);
          for (int j = m - 1; j >= 0; j--) {
            const int64_t t = t0 + j;
            vec uv = load(u + t * I + i), dv = load(dt + t * I + i), gy = load(dy + t * I + i), du = dv * uv;
            vec ddu = splat(0.f), ddt = splat(0.f);
            for (int n = 0; n < N; n++) {
              vec g = dH[n] + gy * c[t * N + n], e = decay[j * N + n];
              sum_c[j * N + n] += gy * h[(j + 1) * N + n];
              sum_b[j * N + n] += g * du;
              vec through = g * h[j * N + n] * e;
              ddt += through * A[n];
              dA[n] += through * dv;
              ddu += g * b[t * N + n];
              dH[n] = g * e;
            }
            store(du_out + t * I + i, ddu * dv + gy * skip);
            store(ddt_out + t * I + i, ddt * 0.69314718f + ddu * uv);
            dD += gy * uv;
          }
          store(dd + i, dD);
          for (int n = 0; n < N; n++) {
            store(da + n * I + i, load(da + n * I + i) + dA[n]);
            store(dfinals + (s * N + n) * I + i, dH[n]);
            if (k == 0 && parent >= 0) {
              float* above = dfinals + (parent * N + n) * I + i;
              store(above, load(above) + dH[n]);
            }
          }
        }
        for (int x = 0; x < m * N; x++) { my_db[t0 * N + x] = sum(sum_b[x]); my_dc[t0 * N + x] = sum(sum_c[x]); }
      }
    }
  }
}

// y_t = silu(bias + sum_k w[k] x[history[t][k]]); history: [T][4] token indices, oldest first, last = t, or -1. w: [4, I].
extern "C" void conv_forward(const float* x, const float* w, const float* bias, const int64_t* history, int64_t T,
                             int64_t I, float* y, int threads) {
  #pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < I; i += W) {
      vec p = load(bias + i);
      for (int k = 0; k < 4; k++)
        if (history[4 * t + k] >= 0) p += load(w + k * I + i) * load(x + history[4 * t + k] * I + i);
      store(y + t * I + i, p * sigmoid(p));
    }
}

// dx [T, I], dw [4, I], dbias [I] must come zeroed.
extern "C" void conv_backward(const float* x, const float* w, const float* bias, const int64_t* history, int64_t T,
                              int64_t I, const float* dy, float* dx, float* dw, float* dbias, int threads) {
  const int64_t share = (I / W + threads - 1) / threads;
  #pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int worker = 0; worker < threads; worker++) {
    const int64_t from = worker * share * W, to = (worker + 1) * share * W < I ? (worker + 1) * share * W : I;
    for (int64_t t = 0; t < T; t++)
      for (int64_t i = from; i < to; i += W) {
        vec p = load(bias + i);
        for (int k = 0; k < 4; k++)
          if (history[4 * t + k] >= 0) p += load(w + k * I + i) * load(x + history[4 * t + k] * I + i);
        vec s = sigmoid(p), g = load(dy + t * I + i) * s * (1.f + p * (1.f - s));
        store(dbias + i, load(dbias + i) + g);
        for (int k = 0; k < 4; k++) {
          const int64_t at = history[4 * t + k];
          if (at < 0) continue;
          store(dx + at * I + i, load(dx + at * I + i) + g * load(w + k * I + i));
          store(dw + k * I + i, load(dw + k * I + i) + g * load(x + at * I + i));
        }
      }
  }
}
