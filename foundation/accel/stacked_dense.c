/* Many small multi-layer perceptrons, few rows each; a layer is act(x[k] W[k] + b[k]).

   A weight is read once per four rows, in the order in which it lies in memory. W[k] is cut into panels of `width`
   columns, each (inputs, width); widths of a multiple of 64 are cut into panels of 64, all others are one panel. */
#include <math.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define VECTORS (64 / LANES)

typedef float wide __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float narrow __attribute__((vector_size(16), aligned(4)));

#define BLOCK(TYPE, WIDTH, COUNT, ROWS)                                                        \
    {                                                                                          \
        TYPE sum[ROWS][COUNT];                                                                 \
        for (int c = 0; c < COUNT; c++)                                                        \
            for (int r = 0; r < ROWS; r++) sum[r][c] = *(const TYPE *)(bias + j + c * WIDTH);  \
        for (long i = 0; i < inputs; i++) {                                                    \
            TYPE weight[COUNT];                                                                \
            for (int c = 0; c < COUNT; c++) __builtin_prefetch(panel + (i + 24) * width + j + c * WIDTH); \
            for (int c = 0; c < COUNT; c++) weight[c] = *(const TYPE *)(panel + i * width + j + c * WIDTH); \
            for (int r = 0; r < ROWS; r++) {                                                   \
                float value = x[(row + r) * row_stride + i];                                   \
                for (int c = 0; c < COUNT; c++) sum[r][c] += value * weight[c];                \
            }                                                                                  \
        }                                                                                      \
        for (int r = 0; r < ROWS; r++)                                                         \
            for (int c = 0; c < COUNT; c++) *(TYPE *)(y + (row + r) * outputs + j + c * WIDTH) = sum[r][c]; \
    }

#define PANEL(ROWS)                                                                            \
    {                                                                                          \
        long j = 0;                                                                            \
        for (; j + 64 <= width; j += 64) BLOCK(wide, LANES, VECTORS, ROWS)                     \
        for (; j + LANES <= width; j += LANES) BLOCK(wide, LANES, 1, ROWS)                     \
        for (; j + 4 <= width; j += 4) BLOCK(narrow, 4, 1, ROWS)                               \
        for (; j < width; j++) BLOCK(float, 1, 1, ROWS)                                        \
    }

static void panel_rows(const float *x, long row_stride, const float *panel, const float *bias, float *y, long rows,
                       long inputs, long outputs, long width) {
    long row = 0;
    for (; row + 4 <= rows; row += 4) PANEL(4)
    for (; row < rows; row++) PANEL(1)
}

/* exp(x) for x <= 0 to two units in the last place, in operations that compilers vectorise. */
static inline float exp_below(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int bits = ((int)n + 127) << 23;
    float power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return p * power;
}

static void activate(float *y, long count, int activation) {
    if (activation == 1)
        for (long i = 0; i < count; i++) {
            float below = exp_below(y[i] > 0.0f ? 0.0f : y[i]) - 1.0f;
            y[i] = y[i] > 0.0f ? y[i] : below;
        }
    else if (activation == 2)
        for (long i = 0; i < count; i++) y[i] = y[i] > 0.0f ? y[i] : 0.0f;
}

/* The layers of networks first to last-1, one network after the other, so that what is between two layers stays in the
   cache. A network's weights lie one layer after the other, and so do its biases. x: (networks, rows, sizes[0]) with the given strides. `scratch` holds 2 * rows * the largest size; `features`
   takes the last hidden layer, or is null; y: (networks, rows, sizes[layers]). */
void stacked_mlp(const float *x, long network_stride, long row_stride, const float *weights, const float *biases,
                 const long *sizes, long layers, int activation, float *scratch,
                 long scratch_size, float *features, float *y, long first, long last, long rows) {
    long num_weights = 0, num_biases = 0;
    for (long layer = 0; layer < layers; layer++) {
        num_weights += sizes[layer] * sizes[layer + 1];
        num_biases += sizes[layer + 1];
    }
    weights += first * num_weights;
    biases += first * num_biases;
    for (long k = first; k < last; k++) {
        const float *in = x + k * network_stride;
        long stride = row_stride;
        for (long layer = 0; layer < layers; layer++) {
            long inputs = sizes[layer], outputs = sizes[layer + 1], width = outputs % 64 ? outputs : 64;
            float *out = layer % 2 ? scratch + scratch_size : scratch;
            if (layer == layers - 1) out = y + k * rows * outputs;
            else if (layer == layers - 2 && features) out = features + k * rows * outputs;
            for (long p = 0; p < outputs; p += width)
                panel_rows(in, stride, weights + p * inputs, biases + p, out + p, rows, inputs, outputs, width);
            weights += inputs * outputs;
            biases += outputs;
            if (layer < layers - 1) activate(out, rows * outputs, activation);
            in = out;
            stride = outputs;
        }
    }
}
