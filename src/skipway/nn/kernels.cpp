// Batch norm, addition and activation in one pass over memory, forward and backward, and 2x2 max-pool.
//
// An image batch is rows x channels, channels next to each other (channels_last). Sums over rows are taken in a fixed
// number of pieces, each in fp32 by runs of 256 rows and in double above that: the bits do not depend on the threads.
// Compiled once for the machine by kernels.py; plain C interface.

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

typedef int64_t i64;
const i64 PIECES = 64, RUN = 256, SOME = 128;

struct bf16 { uint16_t bits; };

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) {
  uint32_t u = uint32_t(p->bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline void store(float* p, float v) { *p = v; }
inline void store(bf16* p, float v) {  // to nearest, ties to even; NaN stays NaN
  uint32_t u;
  memcpy(&u, &v, 4);
  uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  p->bits = uint16_t(v == v ? rounded : 0x7fc0);
}

inline float exp_(float x) {  // 2^n 2^f, f in [-0.5, 0.5]: relative error 2e-7
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float y = x * 1.44269504f;
  float n = (y + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 0.16666667f + f * (0.041666575f + f * (0.0083334519f + f * 0.0013888f));
  p = 1.0f + f * (1.0f + f * (0.5f + f * p));
  int32_t e = (int32_t(n) + 127) << 23;
  float s;
  memcpy(&s, &e, 4);
  return p * s;
}
inline float sigmoid(float z) { return 1.0f / (1.0f + exp_(-z)); }

// Activations: NONE and RELU, SILU z sigmoid(z). `slope` is the derivative at z; RELU's needs the sign alone.
enum { NONE = 0, RELU = 1, SILU = 2 };
template <int A> inline float act(float z) { return A == RELU ? (z < 0 ? 0.0f : z) : A == SILU ? z * sigmoid(z) : z; }
template <int A> inline float slope(float z) {
  if (A == RELU) return z > 0 ? 1.0f : 0.0f;
  if (A == SILU) {
    float s = sigmoid(z);
    return s * (1.0f + z * (1.0f - s));
  }
  return 1.0f;
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define BY_SIXTEEN  // channels of bf16: the processor rounds by itself, and four digits of an exponential do

struct Lanes {
  __m512 v;
  Lanes(__m512 v) : v(v) {}
  Lanes(float f) : v(_mm512_set1_ps(f)) {}
};
inline Lanes operator+(Lanes a, Lanes b) { return _mm512_add_ps(a.v, b.v); }
inline Lanes operator-(Lanes a, Lanes b) { return _mm512_sub_ps(a.v, b.v); }
inline Lanes operator*(Lanes a, Lanes b) { return _mm512_mul_ps(a.v, b.v); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }

inline Lanes load(const float* p, __mmask16 some) { return _mm512_maskz_loadu_ps(some, p); }
inline Lanes load(const bf16* p, __mmask16 some) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p)), 16));
}
inline void store(float* p, Lanes a, __mmask16 some) { _mm512_mask_storeu_ps(p, some, a.v); }
inline void store(bf16* p, Lanes a, __mmask16 some) {
  _mm256_mask_storeu_epi16(p, some, (__m256i)_mm512_cvtneps_pbh(a.v));
}

inline Lanes sigmoid(Lanes z) {  // 1 / (1 + 2^n 2^f), f in [-0.5, 0.5]; NaN stays NaN
  __m512 t = _mm512_mul_ps(z.v, _mm512_set1_ps(-1.44269504f));
  t = _mm512_min_ps(_mm512_set1_ps(126), _mm512_max_ps(_mm512_set1_ps(-126), t));
  __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Lanes f = _mm512_sub_ps(t, n), p = times_plus(f, 0.00961813f, 0.05550411f);
  p = times_plus(f, times_plus(f, times_plus(f, p, 0.24022651f), 0.69314718f), 1.0f);
  return _mm512_rcp14_ps(_mm512_add_ps(_mm512_scalef_ps(p.v, n), _mm512_set1_ps(1)));
}
template <int A> inline Lanes act(Lanes z) {
  if (A == RELU) return _mm512_max_ps(_mm512_setzero_ps(), z.v);
  return A == SILU ? z * sigmoid(z) : z;
}
template <int A> inline Lanes slope(Lanes z) {
  __mmask16 above = _mm512_cmp_ps_mask(z.v, _mm512_setzero_ps(), _CMP_GT_OQ);
  if (A == RELU) return _mm512_maskz_mov_ps(above, _mm512_set1_ps(1));
  if (A == NONE) return 1.0f;
  Lanes s = sigmoid(z);
  return s * times_plus(z, Lanes(1.0f) - s, 1.0f);
}

template <typename Do> inline void by_sixteen(i64 C, Do f) {
  for (i64 c = 0; c + 16 <= C; c += 16) f(c, __mmask16(0xffff));
  if (C % 16) f(C / 16 * 16, __mmask16((1 << C % 16) - 1));
}
#endif

// Two sums by channel over all rows. `add(row, first, second)` adds one row to float sums of C channels. The totals
// stand in the first 2 C doubles of `partial`; behind the two results, `scratch` has 2 C floats for each piece.
template <typename Add>
void sum_rows(i64 rows, i64 C, double* partial, float* scratch, int threads, Add add) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 piece = 0; piece < PIECES; piece++) {
    i64 begin = rows * piece / PIECES, end = rows * (piece + 1) / PIECES;
    double* total = partial + piece * 2 * C;
    float* run = scratch + (1 + piece) * 2 * C;
    for (i64 c = 0; c < 2 * C; c++) total[c] = 0;
    for (i64 start = begin; start < end; start += RUN) {
      i64 stop = start + RUN < end ? start + RUN : end;
      for (i64 c = 0; c < 2 * C; c++) run[c] = 0;
      for (i64 r = start; r < stop; r++) add(r, run, run + C);
      for (i64 c = 0; c < 2 * C; c++) total[c] += run[c];
    }
  }
  for (i64 piece = 1; piece < PIECES; piece++)
    for (i64 c = 0; c < 2 * C; c++) partial[c] += partial[piece * 2 * C + c];
}

template <typename T>
void stats(const T* x, i64 rows, i64 C, double* partial, float* mean_var, int threads) {
  sum_rows(rows, C, partial, mean_var, threads, [=](i64 r, float* s, float* q) {
    const T* row = x + r * C;
#ifdef BY_SIXTEEN
    if (sizeof(T) == 2) {
      by_sixteen(C, [=](i64 c, __mmask16 some) {
        Lanes d = load(row + c, some) - load(x + c, some);
        store(s + c, load(s + c, some) + d, some);
        store(q + c, times_plus(d, d, load(q + c, some)), some);
      });
      return;
    }
#endif
#pragma omp simd
    for (i64 c = 0; c < C; c++) {
      float d = load(row + c) - load(x + c);  // from the first row: small where the mean is large
      s[c] += d;
      q[c] += d * d;
    }
  });
  for (i64 c = 0; c < C; c++) {
    double m = partial[c] / rows, v = partial[C + c] / rows - m * m;
    mean_var[c] = float(m + load(x + c));
    mean_var[C + c] = float(v > 0 ? v : v == v ? 0 : v);
  }
}

// y = act(x scale + shift [+ added])
template <typename T, int A>
void apply(const T* x, const T* added, T* y, i64 rows, i64 C, const float* scale, const float* shift, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 r = 0; r < rows; r++) {
    const T *a = x + r * C, *b = added ? added + r * C : a;
    T* out = y + r * C;
#ifdef BY_SIXTEEN
    if (sizeof(T) == 2) {
      by_sixteen(C, [=](i64 c, __mmask16 some) {
        Lanes z = times_plus(load(a + c, some), load(scale + c, some), load(shift + c, some));
        store(out + c, act<A>(added ? z + load(b + c, some) : z), some);
      });
      continue;
    }
#endif
    if (added) {
#pragma omp simd
      for (i64 c = 0; c < C; c++) store(out + c, act<A>(load(a + c) * scale[c] + shift[c] + load(b + c)));
    } else {
#pragma omp simd
      for (i64 c = 0; c < C; c++) store(out + c, act<A>(load(a + c) * scale[c] + shift[c]));
    }
  }
}

// dz = dy act'(z), and by channel the sums of dz and of dz (x - mean). RELU reads the sign of y, the others z itself.
template <typename T, int A>
void slopes(const T* dy, const T* x, const T* y, const T* added, T* dz, i64 rows, i64 C, const float* scale,
            const float* shift, const float* mean, double* partial, float* sums, int threads) {
  sum_rows(rows, C, partial, sums, threads, [=](i64 r, float* s, float* q) {
    const T *g = dy + r * C, *a = x + r * C, *o = y ? y + r * C : a, *b = added ? added + r * C : a;
    T* out = dz + r * C;
#ifdef BY_SIXTEEN
    if (sizeof(T) == 2) {
      by_sixteen(C, [=](i64 c, __mmask16 some) {
        Lanes v = load(a + c, some), z = A == RELU ? load(o + c, some) : v;
        if (A == SILU) z = times_plus(v, load(scale + c, some), load(shift + c, some));
        if (A == SILU && added) z = z + load(b + c, some);
        store(out + c, load(g + c, some) * slope<A>(z), some);
        Lanes d = load(out + c, some);
        store(s + c, load(s + c, some) + d, some);
        store(q + c, times_plus(d, v - load(mean + c, some), load(q + c, some)), some);
      });
      return;
    }
#endif
#define LOOP(Z)                                     \
  _Pragma("omp simd") for (i64 c = 0; c < C; c++) { \
    store(out + c, load(g + c) * slope<A>(Z));      \
    float d = load(out + c);                        \
    s[c] += d;                                      \
    q[c] += d * (load(a + c) - mean[c]);            \
  }
    if (A == RELU) LOOP(load(o + c))
    else if (added) LOOP(load(a + c) * scale[c] + shift[c] + load(b + c))
    else LOOP(load(a + c) * scale[c] + shift[c])
#undef LOOP
  });
  for (i64 c = 0; c < 2 * C; c++) sums[c] = float(partial[c]);
}

// dx = dz by + (x - mean) along + rest; dx may be dz.
template <typename T>
void finish(const T* dz, const T* x, T* dx, i64 rows, i64 C, const float* by, const float* along, const float* rest,
            const float* mean, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 r = 0; r < rows; r++) {
    const T *g = dz + r * C, *a = x + r * C;
    T* out = dx + r * C;
#ifdef BY_SIXTEEN
    if (sizeof(T) == 2) {
      by_sixteen(C, [=](i64 c, __mmask16 some) {
        Lanes from_mean = load(a + c, some) - load(mean + c, some);
        Lanes sum = times_plus(from_mean, load(along + c, some), load(rest + c, some));
        store(out + c, times_plus(load(g + c, some), load(by + c, some), sum), some);
      });
      continue;
    }
#endif
#pragma omp simd
    for (i64 c = 0; c < C; c++) store(out + c, load(g + c) * by[c] + (load(a + c) - mean[c]) * along[c] + rest[c]);
  }
}

// Each 2x2 pixels: f(the first of them, the pixel that they become). Odd edges are left out.
template <typename Do> void each_quad(i64 B, i64 H, i64 W, int threads, Do f) {
  i64 h = H / 2, w = W / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 i = 0; i < B * h; i++)
    for (i64 j = 0; j < w; j++) f((i / h * H + i % h * 2) * W + 2 * j, i * w + j);
}

// Zeros where an odd image has no quad.
template <typename T> void clear_edges(T* x, i64 B, i64 H, i64 W, i64 C, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 i = 0; i < B * H; i++) {
    T* row = x + i * W * C;
    if (H % 2 && i % H == H - 1)
      memset(row, 0, sizeof(T) * W * C);
    else if (W % 2)
      memset(row + (W - 1) * C, 0, sizeof(T) * C);
  }
}

// The largest of 2x2 pixels and which it was; the first of equals counts; NaN wins.
template <typename T>
void pool(const T* x, T* y, uint8_t* which, i64 B, i64 H, i64 W, i64 C, int threads) {
  each_quad(B, H, W, threads, [=](i64 first, i64 pooled) {
    const T* p = x + first * C;
    T* out = y + pooled * C;
    uint8_t* k = which + pooled * C;
    for (i64 start = 0; start < C; start += SOME) {  // numbers of one width to a loop, or compilers take them one by one
      const i64 many = C - start < SOME ? C - start : SOME;
      float best[SOME];
      int32_t at[SOME];
#pragma omp simd
      for (i64 c = 0; c < many; c++) best[c] = load(p + start + c), at[c] = 0;
      for (int n = 1; n < 4; n++) {
        const T* q = p + (n / 2 * W + n % 2) * C + start;
#pragma omp simd
        for (i64 c = 0; c < many; c++) {
          float v = load(q + c);
          bool larger = (v > best[c]) | (v != v);
          best[c] = larger ? v : best[c];
          at[c] = larger ? n : at[c];
        }
      }
#pragma omp simd
      for (i64 c = 0; c < many; c++) store(out + start + c, best[c]);
#pragma omp simd
      for (i64 c = 0; c < many; c++) k[start + c] = uint8_t(at[c]);
    }
  });
}

template <typename T>
void unpool(const T* dy, const uint8_t* which, T* dx, i64 B, i64 H, i64 W, i64 C, int threads) {
  each_quad(B, H, W, threads, [=](i64 first, i64 pooled) {
    const T* g = dy + pooled * C;
    const uint8_t* k = which + pooled * C;
    for (int n = 0; n < 4; n++) {
      T* out = dx + (first + n / 2 * W + n % 2) * C;
#pragma omp simd
      for (i64 c = 0; c < C; c++) store(out + c, k[c] == n ? load(g + c) : 0.0f);
    }
  });
  clear_edges(dx, B, H, W, C, threads);
}

// 2x2 average pool of C channels into `wide`, from `before` on, zeros around them; and its gradient.
template <typename T>
void average(const T* x, T* y, i64 B, i64 H, i64 W, i64 C, i64 wide, i64 before, int threads) {
  each_quad(B, H, W, threads, [=](i64 first, i64 pooled) {
    const T *p = x + first * C, *q = p + W * C;
    T* out = y + pooled * wide;
    memset(out, 0, sizeof(T) * before);
    memset(out + before + C, 0, sizeof(T) * (wide - before - C));
    out += before;
#pragma omp simd
    for (i64 c = 0; c < C; c++) store(out + c, 0.25f * (load(p + c) + load(p + C + c) + load(q + c) + load(q + C + c)));
  });
}

template <typename T>
void spread(const T* dy, T* dx, i64 B, i64 H, i64 W, i64 C, i64 wide, i64 before, int threads) {
  each_quad(B, H, W, threads, [=](i64 first, i64 pooled) {
    const T* g = dy + pooled * wide + before;
    for (int n = 0; n < 4; n++) {
      T* out = dx + (first + n / 2 * W + n % 2) * C;
#pragma omp simd
      for (i64 c = 0; c < C; c++) store(out + c, 0.25f * load(g + c));
    }
  });
  clear_edges(dx, B, H, W, C, threads);
}

}  // namespace

// What Python calls. `half`: bf16 pixels, else fp32; pointers that may be null are `added` and `y`.
#define PIXELS(CALL)               \
  if (half) {                      \
    typedef bf16 T;                \
    CALL;                          \
  } else {                         \
    typedef float T;               \
    CALL;                          \
  }
#define ACTS(CALL)                 \
  if (kind == RELU) {              \
    const int A = RELU;            \
    PIXELS(CALL)                   \
  } else if (kind == SILU) {       \
    const int A = SILU;            \
    PIXELS(CALL)                   \
  } else {                         \
    const int A = NONE;            \
    PIXELS(CALL)                   \
  }

extern "C" {

i64 scratch_pieces() { return PIECES; }

void norm_stats(i64 half, const void* x, i64 rows, i64 C, double* partial, float* mean_var, i64 threads) {
  PIXELS(stats((const T*)x, rows, C, partial, mean_var, threads))
}

void norm_apply(i64 half, i64 kind, const void* x, const void* added, void* y, i64 rows, i64 C, const float* scale,
                const float* shift, i64 threads) {
  ACTS((apply<T, A>((const T*)x, (const T*)added, (T*)y, rows, C, scale, shift, threads)))
}

void norm_slopes(i64 half, i64 kind, const void* dy, const void* x, const void* y, const void* added, void* dz,
                 i64 rows, i64 C, const float* scale, const float* shift, const float* mean, double* partial,
                 float* sums, i64 threads) {
  ACTS((slopes<T, A>((const T*)dy, (const T*)x, (const T*)y, (const T*)added, (T*)dz, rows, C, scale, shift, mean,
                     partial, sums, threads)))
}

void norm_finish(i64 half, const void* dz, const void* x, void* dx, i64 rows, i64 C, const float* by,
                 const float* along, const float* rest, const float* mean, i64 threads) {
  PIXELS(finish((const T*)dz, (const T*)x, (T*)dx, rows, C, by, along, rest, mean, threads))
}

void max_pool(i64 half, const void* x, void* y, uint8_t* which, i64 B, i64 H, i64 W, i64 C, i64 threads) {
  PIXELS(pool((const T*)x, (T*)y, which, B, H, W, C, threads))
}

void avg_pool(i64 half, const void* x, void* y, i64 B, i64 H, i64 W, i64 C, i64 wide, i64 before, i64 threads) {
  PIXELS(average((const T*)x, (T*)y, B, H, W, C, wide, before, threads))
}

void avg_unpool(i64 half, const void* dy, void* dx, i64 B, i64 H, i64 W, i64 C, i64 wide, i64 before, i64 threads) {
  PIXELS(spread((const T*)dy, (T*)dx, B, H, W, C, wide, before, threads))
}

void max_unpool(i64 half, const void* dy, const uint8_t* which, void* dx, i64 B, i64 H, i64 W, i64 C, i64 threads) {
  PIXELS(unpool((const T*)dy, which, (T*)dx, B, H, W, C, threads))
}
}
