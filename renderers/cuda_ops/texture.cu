// Texture look-ups, their mipmaps and gradients; `torch_ops.texture` states the conventions.

struct Levels {
    int finer, coarser;  // between which a look-up lies; beyond the ends they are one
    real share;          // of the coarser
};

struct Corners {
    long long texel[4];  // around a place, upper left first, lower right last
    real x, y;           // how far from the first it is to it
};

// How many texels of an axis of this size one of the next level covers, all or in part.
__device__ inline int taps(int size) { return size == 1 ? 1 : 2 + size % 2; }

// Which part of a texel of the next level is the texel 2 texel + tap.
__device__ inline real share(long long texel, int tap, int size) {
    int half = size / 2;
    if (size % 2 == 0) return 0.5;
    if (size == 1) return 1;
    return real(tap == 0 ? half - texel : tap == 1 ? half : texel + 1) / real(size);
}

// Fill the level after `image`, one thread a channel of a texel; rows of the launch are its rows.
KERNEL halve(long long count, const real* image, int height, int width, int channels, real* out) {
    long long n = thread();
    if (n >= count) return;
    long long c = n % channels, x = n / channels, row = blockIdx.y;
    real total = 0;
    for (int j = 0; j < taps(width); j++) {
        real mixed = 0;
        for (int i = 0; i < taps(height); i++)
            mixed += share(row, i, height) * image[((2 * row + i) * width + 2 * x + j) * channels + c];
        total += share(x, j, width) * mixed;
    }
    out[row * count + n] = total;
}

// Add to the gradient of a level what it is through the next one.
KERNEL halve_backward(long long count, const real* gradient, int height, int width, int rows, int columns,
                      int channels, real* to_image) {
    long long n = thread();
    if (n >= count) return;
    long long c = n % channels, x = n / channels, y = blockIdx.y;
    real total = 0;
    for (int j = x % 2; j < taps(width) && j <= x; j += 2) {
        long long column = (x - j) / 2;
        real mixed = 0;
        for (int i = y % 2; i < taps(height) && i <= y; i += 2) {
            long long row = (y - i) / 2;
            if (row < rows && column < columns)
                mixed += share(row, i, height) * gradient[(row * columns + column) * channels + c];
        }
        if (column < columns) total += share(column, j, width) * mixed;
    }
    to_image[y * count + n] += total;
}

__device__ inline Levels levels_of(real lod, int count) {
    if (!(lod > 0)) return {0, 0, 0};  // a lod that is no number, too
    if (lod >= count - 1) return {count - 1, count - 1, 0};
    return {(int)lod, (int)lod + 1, lod - real((int)lod)};
}

__device__ inline long long inside(long long texel, long long size, bool repeat) {
    if (texel >= 0 && texel < size) return texel;
    return repeat ? (texel % size + size) % size : clamped(texel, size);
}

__device__ inline Corners corners(const real* uv, const long long* sizes, const long long* starts, int level,
                                  bool repeat) {
    long long height = sizes[2 * level], width = sizes[2 * level + 1];
    real x = uv[0] * real(width) - real(0.5), y = uv[1] * real(height) - real(0.5), left = floor(x), top = floor(y);
    long long first = inside((long long)left, width, repeat), second = inside((long long)left + 1, width, repeat);
    long long upper = starts[level] + inside((long long)top, height, repeat) * width;
    long long lower = starts[level] + inside((long long)top + 1, height, repeat) * width;
    return {{upper + first, upper + second, lower + first, lower + second}, x - left, y - top};
}

__device__ inline real mixed(real p, real q, real r, real s, real x, real y) {
    real upper = p + x * (q - p), lower = r + x * (s - r);
    return upper + y * (lower - upper);
}

KERNEL texture(long long count, const real* texels, const real* uv, const real* lod, const long long* sizes,
               const long long* starts, int levels, int repeat, int channels, real* out) {
    long long n = thread();
    if (n >= count) return;
    Levels at = levels_of(lod[n], levels);
    Corners near = corners(uv + 2 * n, sizes, starts, at.finer, repeat);
    Corners far = corners(uv + 2 * n, sizes, starts, at.coarser, repeat);
    for (int c = 0; c < channels; c++) {
        const real* of = texels + c;
        real total = mixed(of[near.texel[0] * channels], of[near.texel[1] * channels], of[near.texel[2] * channels],
                           of[near.texel[3] * channels], near.x, near.y);
        if (at.coarser > at.finer)
            total = (1 - at.share) * total +
                    at.share * mixed(of[far.texel[0] * channels], of[far.texel[1] * channels],
                                     of[far.texel[2] * channels], of[far.texel[3] * channels], far.x, far.y);
        out[n * channels + c] = total;
    }
}

// Look-ups share texels: the sums of `to_texels` are of one order only by chance, and vary in their last bits. What is
// not asked for is null.
KERNEL texture_backward(long long count, const real* texels, const real* uv, const real* lod, const long long* sizes,
                        const long long* starts, int levels, int repeat, int channels, const real* gradient,
                        real* to_texels, real* to_uv, real* to_lod) {
    long long n = thread();
    if (n >= count) return;
    Levels at = levels_of(lod[n], levels);
    real by_u = 0, by_v = 0, by_lod = 0;
    for (int level = at.finer; level <= at.coarser; level++) {
        real weight = level > at.finer ? at.share : 1 - at.share, value = 0, across = 0, down = 0;
        Corners at_level = corners(uv + 2 * n, sizes, starts, level, repeat);
        real x = at_level.x, y = at_level.y;
        for (int c = 0; c < channels; c++) {
            long long k[4];
            for (int i = 0; i < 4; i++) k[i] = at_level.texel[i] * channels + c;
            real g = gradient[n * channels + c], p = texels[k[0]], q = texels[k[1]], r = texels[k[2]], s = texels[k[3]];
            value += g * mixed(p, q, r, s, x, y);
            across += g * (q - p + y * (s - r - (q - p)));
            down += g * (r - p + x * (s - r - (q - p)));
            if (to_texels) {
                real above = weight * (1 - y) * g, below = weight * y * g;
                atomicAdd(to_texels + k[0], above * (1 - x));
                atomicAdd(to_texels + k[1], above * x);
                atomicAdd(to_texels + k[2], below * (1 - x));
                atomicAdd(to_texels + k[3], below * x);
            }
        }
        by_u += weight * real(sizes[2 * level + 1]) * across;
        by_v += weight * real(sizes[2 * level]) * down;
        if (at.coarser > at.finer) by_lod += level > at.finer ? value : -value;
    }
    if (to_uv) to_uv[2 * n] = by_u, to_uv[2 * n + 1] = by_v;
    if (to_lod) to_lod[n] = by_lod;
}
