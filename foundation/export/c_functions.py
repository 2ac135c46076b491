"""The functions of the operations in C99: float32, no allocation, nothing but ``math.h`` and ``string.h``.

An image is (channels, rows, columns), flattened row by row.
"""

from __future__ import annotations

FUNCTIONS = {
    "dense": """\
/* out = weight x + bias, of each of the blocks of x. */
static void POLICY_dense(const float *weight, const float *bias, int num_in, int num_out, int blocks, const float *x,
                         float *out) {
    for (int block = 0; block < blocks; block++) {
        for (int row = 0; row < num_out; row++) {
            float sum = bias[row];
            for (int column = 0; column < num_in; column++) {
                sum += weight[row * num_in + column] * x[block * num_in + column];
            }
            out[block * num_out + row] = sum;
        }
    }
}
""",
    "normalize": """\
static void POLICY_normalize(const float *mean, const float *scale, int size, const float *x, float *out) {
    for (int i = 0; i < size; i++) {
        out[i] = (x[i] - mean[i]) * scale[i];
    }
}
""",
    "scale": """\
/* every: 1 where scale and shift have one number for each of x, 0 where they have one for all. */
static void POLICY_scale(const float *scale, int every_scale, const float *shift, int every_shift, int size,
                         const float *x, float *out) {
    for (int i = 0; i < size; i++) {
        out[i] = x[i] * scale[i * every_scale] + shift[i * every_shift];
    }
}
""",
    "clamp": """\
static void POLICY_clamp(const float *low, int every_low, const float *high, int every_high, int size, const float *x,
                         float *out) {
    for (int i = 0; i < size; i++) {
        const float above = x[i] > low[i * every_low] ? x[i] : low[i * every_low];
        out[i] = above < high[i * every_high] ? above : high[i * every_high];
    }
}
""",
    "layer_norm": """\
static void POLICY_layer_norm(const float *weight, const float *bias, float eps, int size, const float *x,
                              float *out) {
    float mean = 0.0f;
    float variance = 0.0f;
    for (int i = 0; i < size; i++) {
        mean += x[i];
    }
    mean /= (float)size;
    for (int i = 0; i < size; i++) {
        variance += (x[i] - mean) * (x[i] - mean);
    }
    variance /= (float)size;
    for (int i = 0; i < size; i++) {
        out[i] = (x[i] - mean) / sqrtf(variance + eps) * weight[i] + bias[i];
    }
}
""",
    "arg_max": """\
static void POLICY_arg_max(int size, const float *x, float *out) {
    int best = 0;
    for (int i = 1; i < size; i++) {
        if (x[i] > x[best]) {
            best = i;
        }
    }
    out[0] = (float)best;
}
""",
    "sigmoid": """\
static float POLICY_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
""",
    "softplus": """\
static float POLICY_softplus(float x, float beta, float threshold) {
    return x * beta > threshold ? x : log1pf(expf(x * beta)) / beta;
}
""",
    "beta_mean": """\
static void POLICY_beta_mean(float low, float width, int size, const float *x, float *out) {
    for (int i = 0; i < size; i++) {
        const float alpha = POLICY_softplus(x[i], 1.0f, 20.0f) + 1.0f;
        const float beta = POLICY_softplus(x[size + i], 1.0f, 20.0f) + 1.0f;
        out[i] = alpha / (alpha + beta) * width + low;
    }
}
""",
    "dot": """\
static float POLICY_dot(const float *weight, const float *x, int size) {
    float sum = 0.0f;
    for (int i = 0; i < size; i++) {
        sum += weight[i] * x[i];
    }
    return sum;
}
""",
    "gru": """\
/* One step of a GRU layer; gates in the order r, z, n. h is what it remembers, out its next value. */
static void POLICY_gru(const float *w_in, const float *w_hidden, const float *b_in, const float *b_hidden, int num_in,
                       int size, const float *x, const float *h, float *out) {
    for (int i = 0; i < size; i++) {
        float in[3];
        float kept[3];
        for (int gate = 0; gate < 3; gate++) {
            const int row = gate * size + i;
            in[gate] = POLICY_dot(w_in + row * num_in, x, num_in) + b_in[row];
            kept[gate] = POLICY_dot(w_hidden + row * size, h, size) + b_hidden[row];
        }
        const float reset = POLICY_sigmoid(in[0] + kept[0]);
        const float update = POLICY_sigmoid(in[1] + kept[1]);
        const float candidate = tanhf(in[2] + reset * kept[2]);
        out[i] = candidate + update * (h[i] - candidate);
    }
}
""",
    "lstm": """\
/* One step of an LSTM layer; gates in the order i, f, g, o. h and c are what it remembers; c is updated in place. */
static void POLICY_lstm(const float *w_in, const float *w_hidden, const float *b_in, const float *b_hidden, int num_in,
                        int size, const float *x, const float *h, float *c, float *out) {
    for (int i = 0; i < size; i++) {
        float gates[4];
        for (int gate = 0; gate < 4; gate++) {
            const int row = gate * size + i;
            gates[gate] = POLICY_dot(w_in + row * num_in, x, num_in) + b_in[row] +
                          POLICY_dot(w_hidden + row * size, h, size) + b_hidden[row];
        }
        c[i] = POLICY_sigmoid(gates[1]) * c[i] + POLICY_sigmoid(gates[0]) * tanhf(gates[2]);
        out[i] = POLICY_sigmoid(gates[3]) * tanhf(c[i]);
    }
}
""",
    "window": """\
/* Append x to the past, oldest first, and remember all but the oldest. */
static void POLICY_window(int num_in, int length, const float *x, float *past, float *out) {
    const size_t kept = sizeof(float) * (size_t)(num_in * (length - 1));
    memcpy(out, past, kept);
    memcpy(out + num_in * (length - 1), x, sizeof(float) * (size_t)num_in);
    memcpy(past, out + num_in, kept);
}
""",
    "padded_index": """\
/* Position in a row of an image that continues beyond its border by a mode; -1 for a zero. */
static int POLICY_padded_index(int index, int size, int mode) {
    if (index >= 0 && index < size) {
        return index;
    }
    if (mode == 1) { /* reflect */
        return index < 0 ? -index : 2 * (size - 1) - index;
    }
    if (mode == 2) { /* replicate */
        return index < 0 ? 0 : size - 1;
    }
    if (mode == 3) { /* circular */
        return index < 0 ? index + size : index - size;
    }
    return -1;
}
""",
    "convolution": """\
typedef struct {
    int channels, rows, columns;             /* of the image that is read */
    int channels_out, rows_out, columns_out; /* of what is made */
    int kernel[2], stride[2], padding[2], dilation[2];
    int mode; /* beyond the border: 0 zeros, 1 reflect, 2 replicate, 3 circular */
} POLICY_convolution_shape;

static float POLICY_convolution_at(const POLICY_convolution_shape *shape, const float *weight, const float *x, int row,
                                   int column) {
    float sum = 0.0f;
    for (int channel = 0; channel < shape->channels; channel++) {
        for (int i = 0; i < shape->kernel[0]; i++) {
            const int place = row * shape->stride[0] - shape->padding[0] + i * shape->dilation[0];
            const int y = POLICY_padded_index(place, shape->rows, shape->mode);
            for (int j = 0; j < shape->kernel[1]; j++) {
                const int along = column * shape->stride[1] - shape->padding[1] + j * shape->dilation[1];
                const int z = POLICY_padded_index(along, shape->columns, shape->mode);
                const float given = y < 0 || z < 0 ? 0.0f : x[(channel * shape->rows + y) * shape->columns + z];
                sum += given * weight[(channel * shape->kernel[0] + i) * shape->kernel[1] + j];
            }
        }
    }
    return sum;
}

static void POLICY_convolution(const POLICY_convolution_shape *shape, const float *weight, const float *bias,
                               const float *x, float *out) {
    const int per_filter = shape->channels * shape->kernel[0] * shape->kernel[1];
    for (int filter = 0; filter < shape->channels_out; filter++) {
        for (int row = 0; row < shape->rows_out; row++) {
            for (int column = 0; column < shape->columns_out; column++) {
                const float *own = weight + filter * per_filter;
                *out++ = POLICY_convolution_at(shape, own, x, row, column) + bias[filter];
            }
        }
    }
}
""",
    "channel_norm": """\
static void POLICY_channel_norm(const float *mean, const float *scale, const float *shift, int channels, int pixels,
                                const float *x, float *out) {
    for (int channel = 0; channel < channels; channel++) {
        for (int i = 0; i < pixels; i++) {
            const int place = channel * pixels + i;
            out[place] = (x[place] - mean[channel]) * scale[channel] + shift[channel];
        }
    }
}
""",
    "max_pool": """\
typedef struct {
    int channels, rows, columns, rows_out, columns_out, kernel, stride, padding;
} POLICY_max_pool_shape;

static float POLICY_max_at(const POLICY_max_pool_shape *shape, const float *image, int row, int column) {
    float most = -INFINITY;
    for (int y = row; y < row + shape->kernel; y++) {
        for (int z = column; z < column + shape->kernel; z++) {
            if (y >= 0 && y < shape->rows && z >= 0 && z < shape->columns && image[y * shape->columns + z] > most) {
                most = image[y * shape->columns + z];
            }
        }
    }
    return most;
}

static void POLICY_max_pool(const POLICY_max_pool_shape *shape, const float *x, float *out) {
    for (int channel = 0; channel < shape->channels; channel++) {
        const float *image = x + channel * shape->rows * shape->columns;
        for (int row = 0; row < shape->rows_out; row++) {
            for (int column = 0; column < shape->columns_out; column++) {
                *out++ = POLICY_max_at(shape, image, row * shape->stride - shape->padding,
                                       column * shape->stride - shape->padding);
            }
        }
    }
}
""",
    "global_pool": """\
static void POLICY_global_pool(int largest, int channels, int pixels, const float *x, float *out) {
    for (int channel = 0; channel < channels; channel++) {
        const float *image = x + channel * pixels;
        float result = image[0];
        for (int i = 1; i < pixels; i++) {
            result = largest ? (image[i] > result ? image[i] : result) : result + image[i];
        }
        out[channel] = largest ? result : result / (float)pixels;
    }
}
""",
    "add": """\
static void POLICY_add(int size, const float *x, const float *y, float *out) {
    for (int i = 0; i < size; i++) {
        out[i] = x[i] + y[i];
    }
}
""",
    "spatial_softmax": """\
static void POLICY_spatial_softmax(const float *grid, int channels, int pixels, const float *x, float *out) {
    for (int channel = 0; channel < channels; channel++) {
        const float *image = x + channel * pixels;
        float most = image[0];
        float total = 0.0f, across = 0.0f, down = 0.0f;
        for (int i = 1; i < pixels; i++) {
            most = image[i] > most ? image[i] : most;
        }
        for (int i = 0; i < pixels; i++) {
            const float share = expf(image[i] - most);
            total += share;
            across += share * grid[2 * i];
            down += share * grid[2 * i + 1];
        }
        out[2 * channel] = across / total;
        out[2 * channel + 1] = down / total;
    }
}
""",
}
"""C text by name; ``POLICY`` stands for the policy's name. Each comes after those that it calls."""

NEEDS = {
    "gru": ("dot", "sigmoid"),
    "lstm": ("dot", "sigmoid"),
    "beta_mean": ("softplus",),
    "convolution": ("padded_index",),
    "silu": ("sigmoid",),
    "mish": ("softplus",),
}
"""Functions that a function, or an activation, calls."""

ACTIVATIONS = {
    "celu": "value > 0.0f ? value : {alpha} * expm1f(value / {alpha})",
    "elu": "value > 0.0f ? value : {alpha} * expm1f(value)",
    "exp": "expf(value)",
    "fast_tanh": "POLICY_fast_tanh(value)",
    "gelu": "0.5f * value * (1.0f + erff(value * 0.70710678118654752f))",
    "leaky_relu": "value > 0.0f ? value : {negative_slope} * value",
    "mish": "value * tanhf(POLICY_softplus(value, 1.0f, 20.0f))",
    "relu": "value > 0.0f ? value : 0.0f",
    "selu": "1.0507009873554805f * (value > 0.0f ? value : 1.6732632423543772f * expm1f(value))",
    "sigmoid": "1.0f / (1.0f + expf(-value))",
    "silu": "value * POLICY_sigmoid(value)",
    "softplus": "value * {beta} > {threshold} ? value : log1pf(expf(value * {beta})) / {beta}",
    "tanh": "tanhf(value)",
}
"""Expression of each activation of one number, ``value``; constants are filled in."""

FAST_TANH = """\
static float POLICY_fast_tanh(float x) {
    const float bounded = x < -3.0f ? -3.0f : x > 3.0f ? 3.0f : x;
    const float square = bounded * bounded;
    return bounded * (27.0f + square) / (27.0f + 9.0f * square);
}
"""
