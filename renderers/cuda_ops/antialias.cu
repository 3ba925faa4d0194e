// Differentiable silhouettes: `torch_ops.antialias` says which edge mixes which pixels; the float64 operations are its.
//
// A pair of adjacent pixels keeps the nearest edge between them that is in sight: first the least depth of all, then the
// first edge of that depth. Then every pixel asks its four pairs what they mix, so that no two threads write to one.
// Rows of a launch are views. Cells hold the pairs of a view: first those in a row, then those one above the other,
// each at its first pixel.

const int NONE = 0x7fffffff;  // no edge

struct Line {
    double a, b, c;
};

struct Meeting {
    double place, z, w;  // pixels from the first centre, z/w, and w, to be multiplied by the sign of q - p
};

__device__ inline Line line_of(const double* p, const double* q) {
    return {p[1] * q[3] - p[3] * q[1], p[3] * q[0] - p[0] * q[3], p[0] * q[1] - p[1] * q[0]};
}

// On which side of each edge all its faces lie, or 0.
KERNEL silhouettes(long long count, const double* points, const long long* ends, const long long* starts,
                   const long long* opposite, int vertices, signed char* side) {
    long long e = thread();
    if (e >= count) return;
    const double* view = points + 4ll * blockIdx.y * vertices;
    Line line = line_of(view + 4 * ends[2 * e], view + 4 * ends[2 * e + 1]);
    int lowest = 0, highest = 0;
    for (long long n = starts[e]; n < starts[e + 1]; n++) {
        const double* p = view + 4 * opposite[n];
        double beyond = line.a * p[0] + line.b * p[1] + line.c * p[3];
        if (beyond > 0)
            highest = 1;
        else if (beyond < 0)
            lowest = -1;
    }
    side[blockIdx.y * count + e] = lowest + highest;
}

// How far a vertex is beyond a line of pixel centres, times w.
__device__ inline double beyond(const double* point, int axis, double line) {
    return point[axis] - (line + 0.5) * point[3];
}

// Where an edge crosses a line.
__device__ inline Meeting meet(const double* a, const double* b, int along, double p, double q) {
    double w = a[3] * q - b[3] * p;
    return {(a[along] * q - b[along] * p) / w - 0.5, (a[2] * q - b[2] * p) / w, w};
}

// Of two numbers the lower has the lower key; zero has one key.
__device__ inline unsigned long long depth_key(double z) {
    unsigned long long bits = __double_as_longlong(z + 0.0);
    return bits ^ (bits >> 63 ? ~0ull : 1ull << 63);
}

// The cell of the pair whose first pixel is the `first` on its line.
__device__ inline long long cell_of(int along, long long line, long long first, int height, int width) {
    return along == 0 ? line * width + first : (height + first) * width + line;
}

// Once without `winner`, to find the least depth of every pair, and once with it.
KERNEL search(long long count, const real* depth, const double* points, const long long* ends, const signed char* side,
              const int* face, int vertices, int height, int width, unsigned long long* nearest, int* winner) {
    long long e = thread(), pixels = (long long)height * width;
    if (e >= count || side[blockIdx.y * count + e] == 0) return;
    const double* view = points + 4ll * blockIdx.y * vertices;
    const double *a = view + 4 * ends[2 * e], *b = view + 4 * ends[2 * e + 1];
    face += blockIdx.y * pixels, depth += blockIdx.y * pixels;
    Line edge = line_of(a, b);
    int along = fabs(edge.a) >= fabs(edge.b) ? 0 : 1;  // the axis of the pairs; the edge crosses lines of pixels along it
    bool near_is_second = side[blockIdx.y * count + e] * (along ? edge.b : edge.a) > 0;
    int lines = along ? width : height, centres = along ? height : width;
    double first = 0, last = lines - 1;  // all lines, if an end is behind the camera
    if (a[3] > 0 && b[3] > 0) {
        double p = a[1 - along] / a[3], q = b[1 - along] / b[3];
        if (!isfinite(p - q)) return;
        // One line more on either side than the quotients, which are rounded, say.
        first = fmin(fmax(fmin(p, q) - 1.5, 0.0), (double)lines);
        last = fmax(fmin(fmax(p, q) + 0.5, last), -1.0);
    }
    for (long long line = (long long)first; line <= (long long)last; line++) {
        double p = beyond(a, 1 - along, line), q = beyond(b, 1 - along, line);
        if ((p < 0) == (q < 0)) continue;
        Meeting at = meet(a, b, along, p, q);
        if ((at.w > 0) != (q > p) || !(at.place > 0 && at.place <= centres - 1 && at.z >= -1)) continue;
        long long second = (long long)ceil(at.place), near = near_is_second ? second : second - 1;
        long long far = 2 * second - 1 - near;
        long long here = along ? near * width + line : line * width + near;
        long long there = along ? far * width + line : line * width + far;
        double behind = depth[there] - at.z;
        if (face[here] == face[there] || !(behind > 0) || !(depth[here] - at.z < behind / 2)) continue;
        long long cell = 2 * blockIdx.y * pixels + cell_of(along, line, second - 1, height, width);
        if (!winner)
            atomicMin(nearest + cell, depth_key(at.z));
        else if (nearest[cell] == depth_key(at.z))
            atomicMin(winner + cell, (int)e);
    }
}

// What one of the four pairs of a pixel mixes.
struct Mixture {
    long long other;  // the other pixel
    int along;
    const double *start, *end;  // of the edge; null if there is none
    double line, place, share;
    bool into_first, first;  // whether the first pixel of the pair is mixed, and whether that is this one
};

__device__ inline Mixture mixture(int pair, long long pixel, const double* points, const long long* ends,
                                  const int* winner, int height, int width) {
    Mixture m = {};
    m.along = pair >> 1, m.first = pair & 1;
    long long row = pixel / width, column = pixel % width, line = m.along ? column : row;
    long long first = (m.along ? row : column) - (m.first ? 0 : 1);
    if (first < 0 || first + 1 >= (m.along ? height : width)) return m;
    int e = winner[cell_of(m.along, line, first, height, width)];
    if (e == NONE) return m;
    m.start = points + 4 * ends[2ll * e], m.end = points + 4 * ends[2ll * e + 1], m.line = line;
    double p = beyond(m.start, 1 - m.along, m.line), q = beyond(m.end, 1 - m.along, m.line);
    m.place = meet(m.start, m.end, m.along, p, q).place;
    m.share = first + 0.5 - m.place;
    m.into_first = m.share > 0, m.share = fabs(m.share);
    m.other = pixel + (m.first ? 1 : -1) * (m.along ? width : 1);
    return m;
}

// `total` is what all edges move into a pixel.
KERNEL mix(long long count, const real* colour, const double* points, const long long* ends, const int* winner,
           int vertices, int height, int width, int channels, double* total, real* out) {
    long long pixel = thread();
    if (pixel >= count) return;
    points += 4ll * blockIdx.y * vertices, winner += 2 * blockIdx.y * count, total += blockIdx.y * count;
    colour += blockIdx.y * count * channels, out += blockIdx.y * count * channels;
    double shares[4], sum = 0;
    for (int pair = 0; pair < 4; pair++) {
        Mixture m = mixture(pair, pixel, points, ends, winner, height, width);
        shares[pair] = m.start && m.into_first == m.first ? m.share : 0;
        sum += shares[pair];
    }
    total[pixel] = sum;
    const long long steps[4] = {-1, 1, -width, width};  // to the other pixel of each pair
    for (int c = 0; c < channels; c++) {
        double own = colour[pixel * channels + c], mixed = own;
        for (int pair = 0; pair < 4; pair++)
            if (shares[pair] > 0)
                mixed += shares[pair] / fmax(sum, 1.0) * (colour[(pixel + steps[pair]) * channels + c] - own);
        out[pixel * channels + c] = mixed;
    }
}

// Add the gradient of the place where an edge crosses a line to one of its ends, whose factor there is `by`. The place is
// (x q - x' p) / (w q - w' p), with p = y - line w and q = y' - line w'; `g` is its gradient over that w.
__device__ inline void move(double* to, const double* other, int along, double turn, double g, double by, double x,
                            double line) {
    double to_line = turn * g * (x * other[3] - other[along]);
    atomicAdd(to + along, g * by);
    atomicAdd(to + 1 - along, to_line);
    atomicAdd(to + 3, -(g * by * x + to_line * (line + 0.5)));
}

// Edges share vertices: the sums of `to_points` are of one order only by chance, and vary in the last bits of a double.
KERNEL mix_backward(long long count, const real* colour, const double* points, const long long* ends,
                    const int* winner, int vertices, int height, int width, int channels, const double* total,
                    const real* out, const real* gradient, real* to_colour, double* to_points) {
    long long pixel = thread();
    if (pixel >= count) return;
    const double* view = points + 4ll * blockIdx.y * vertices;
    winner += 2 * blockIdx.y * count, total += blockIdx.y * count, to_points += 4ll * blockIdx.y * vertices;
    colour += blockIdx.y * count * channels, out += blockIdx.y * count * channels;
    gradient += blockIdx.y * count * channels, to_colour += blockIdx.y * count * channels;
    bool full = total[pixel] >= 1;
    double scale = 1 / fmax(total[pixel], 1.0), left = 1 - total[pixel] * scale;
    for (int c = 0; c < channels; c++) to_colour[pixel * channels + c] = left * gradient[pixel * channels + c];
    for (int pair = 0; pair < 4; pair++) {
        Mixture m = mixture(pair, pixel, view, ends, winner, height, width);
        if (!m.start) continue;
        if (m.into_first != m.first) {
            double share = m.share / fmax(total[m.other], 1.0);
            for (int c = 0; c < channels; c++)
                to_colour[pixel * channels + c] += share * gradient[m.other * channels + c];
            continue;
        }
        double to_share = 0;
        for (int c = 0; c < channels; c++) {
            // Where the shares are made to sum to one, more of one colour is less of the whole mixture.
            double own = full ? out[pixel * channels + c] : colour[pixel * channels + c];
            to_share += gradient[pixel * channels + c] * scale * (colour[m.other * channels + c] - own);
        }
        double p = beyond(m.start, 1 - m.along, m.line), q = beyond(m.end, 1 - m.along, m.line), x = m.place + 0.5;
        double g = (m.first ? -to_share : to_share) / meet(m.start, m.end, m.along, p, q).w;
        move(to_points + (m.start - view), m.end, m.along, 1, g, q, x, m.line);
        move(to_points + (m.end - view), m.start, m.along, -1, g, -p, x, m.line);
    }
}
