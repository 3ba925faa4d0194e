// Triangles to pixels; snapping, the edge rule and barycentrics are those of `torch_ops.raster`, in the same numbers.
//
// Every triangle is cut into tiles of at most TILE x TILE pixels of its bounding box, one thread each. A pixel keeps the
// least key of what is drawn there: the depth, in single precision, above the number of the face, so that of the same
// depth the first face stays. Whatever the order of the threads, the picture is the same.

const long long SUBPIXEL = 256;
const int TILE = 8;

struct Corner {
    double x, y, z, w;
};

struct Box {
    long long left, top, right, bottom;  // the pixels whose centres a triangle may cover
};

__device__ inline Corner corner(const real* clip, long long i) {
    return {clip[4 * i], clip[4 * i + 1], clip[4 * i + 2], clip[4 * i + 3]};
}

// Vertices in 1/256 pixel, and whether they are in front of the camera and not far off the picture. Rows are views.
KERNEL snap(long long count, const real* clip, int height, int width, double largest, long long* points, bool* tame) {
    long long n = thread();
    if (n >= count) return;
    long long i = blockIdx.y * count + n;
    Corner c = corner(clip, i);
    tame[i] = c.w > 0 && fabs(c.x) <= (2 * largest / width - 1) * c.w && fabs(c.y) <= (2 * largest / height - 1) * c.w;
    if (!tame[i]) return;
    points[2 * i] = (long long)floor((c.x / c.w + 1) / 2 * width * SUBPIXEL + 0.5);
    points[2 * i + 1] = (long long)floor((-c.y / c.w + 1) / 2 * height * SUBPIXEL + 0.5);
}

// Flag the views with a face that needs to be clipped, and with one between missing vertices. Rows are views.
KERNEL examine(long long count, const long long* faces, const bool* tame, int vertices, bool* partial, bool* missing) {
    long long f = thread(), view = blockIdx.y;
    if (f >= count) return;
    for (int k = 0; k < 3; k++) {
        long long i = faces[3 * f + k];
        if (i < 0 || i >= vertices)
            missing[view] = true;
        else if (!tame[view * vertices + i])
            partial[view] = true;
    }
}

// Division that rounds down, by SUBPIXEL.
__device__ inline long long pixels(long long position) { return position >> 8; }

__device__ inline long long first_centre(long long position) { return pixels(position + SUBPIXEL / 2 - 1); }

__device__ inline long long last_centre(long long position) { return pixels(position - SUBPIXEL / 2); }

__device__ inline Box box(const long long* points, const long long* triangle, int height, int width) {
    const long long *a = points + 2 * triangle[0], *b = points + 2 * triangle[1], *c = points + 2 * triangle[2];
    if ((b[0] - a[0]) * (c[1] - a[1]) == (b[1] - a[1]) * (c[0] - a[0])) return {0, 0, -1, -1};
    return {max(first_centre(min(a[0], min(b[0], c[0]))), 0ll), max(first_centre(min(a[1], min(b[1], c[1]))), 0ll),
            min(last_centre(max(a[0], max(b[0], c[0]))), width - 1ll),
            min(last_centre(max(a[1], max(b[1], c[1]))), height - 1ll)};
}

__device__ inline long long tiles(long long first, long long last) { return last < first ? 0 : (last - first) / TILE + 1; }

KERNEL count_tiles(long long count, const long long* points, const long long* triangles, int height, int width,
                   long long* counts) {
    long long t = thread();
    if (t >= count) return;
    Box b = box(points, triangles + 3 * t, height, width);
    counts[t] = tiles(b.left, b.right) * tiles(b.top, b.bottom);
}

// A line between two points: not negative inside a triangle that turns clockwise on the screen, by the top-left rule.
struct Edge {
    long long value, right, down;  // at a pixel's centre, and its steps to the next pixels
};

__device__ inline Edge edge(const long long* a, const long long* b, long long x, long long y) {
    long long dx = b[0] - a[0], dy = b[1] - a[1];
    bool top_left = dy < 0 || (dy == 0 && dx > 0);
    return {dx * (y - a[1]) - dy * (x - a[0]) - (top_left ? 0 : 1), -dy * SUBPIXEL, dx * SUBPIXEL};
}

struct Weights {
    double u, v, z;  // barycentrics of the first two corners, and z/w
};

// Olano and Greer 1997: no division by w, so any corner may lie behind.
__device__ inline Weights homogeneous(Corner a, Corner b, Corner c, double fx, double fy) {
    double ax = a.x - fx * a.w, ay = a.y - fy * a.w, bx = b.x - fx * b.w, by = b.y - fy * b.w;
    double cx = c.x - fx * c.w, cy = c.y - fy * c.w;
    double u = bx * cy - by * cx, v = cx * ay - cy * ax, w = ax * by - ay * bx;
    double total = u + v + w, sign = total > 0 ? 1 : total < 0 ? -1 : 0;
    u = fmax(u * sign, 0.0), v = fmax(v * sign, 0.0), w = fmax(w * sign, 0.0);
    total = u + v + w;
    if (total > 0)
        u /= total, v /= total, w /= total;
    else  // a face seen exactly edge-on
        u = v = w = 1.0 / 3;
    return {u, v, (u * a.z + v * b.z + w * c.z) / (u * a.w + v * b.w + w * c.w)};
}

__device__ inline double across(long long column, int width) { return (2 * column + 1) / (double)width - 1; }

__device__ inline double up(long long row, int height) { return 1 - (2 * row + 1) / (double)height; }

// Of two numbers the lower has the lower key; zero has one key.
__device__ inline unsigned long long depth_key(float z) {
    unsigned bits = __float_as_uint(z + 0.0f);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The triangle that owns a tile: the first whose tiles end after it.
__device__ inline long long owner_of(long long tile, const long long* ends, long long triangles) {
    long long low = 0, high = triangles - 1;
    while (low < high) {
        long long middle = (low + high) / 2;
        if (ends[middle] > tile)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

KERNEL draw(long long count, const real* clip, const long long* faces, const long long* points,
            const long long* triangles, const long long* owners, const long long* ends, long long listed, int height,
            int width, unsigned long long* keys) {
    long long tile = thread();
    if (tile >= count) return;
    long long t = owner_of(tile, ends, listed), owner = owners[t];
    const long long* triangle = triangles + 3 * t;
    Box b = box(points, triangle, height, width);
    tile -= t ? ends[t - 1] : 0;
    long long columns = tiles(b.left, b.right);
    b.left += tile % columns * TILE, b.top += tile / columns * TILE;
    b.right = min(b.right, b.left + TILE - 1), b.bottom = min(b.bottom, b.top + TILE - 1);

    const long long *p = points + 2 * triangle[0], *q = points + 2 * triangle[1], *r = points + 2 * triangle[2];
    if ((q[0] - p[0]) * (r[1] - p[1]) < (q[1] - p[1]) * (r[0] - p[0])) {
        const long long* other = q;
        q = r, r = other;
    }
    long long x = b.left * SUBPIXEL + SUBPIXEL / 2, y = b.top * SUBPIXEL + SUBPIXEL / 2;
    Edge sides[3] = {edge(p, q, x, y), edge(q, r, x, y), edge(r, p, x, y)};
    const long long* face = faces + 3 * owner;
    for (long long row = b.top; row <= b.bottom; row++) {
        long long values[3] = {sides[0].value, sides[1].value, sides[2].value};
        for (long long column = b.left; column <= b.right; column++) {
            if ((values[0] | values[1] | values[2]) >= 0) {
                double z = homogeneous(corner(clip, face[0]), corner(clip, face[1]), corner(clip, face[2]),
                                       across(column, width), up(row, height)).z;
                if (real(z) >= -1 && real(z) <= 1)
                    atomicMin(keys + row * width + column, depth_key((float)z) << 32 | (unsigned long long)owner);
            }
            for (int k = 0; k < 3; k++) values[k] += sides[k].right;
        }
        for (int k = 0; k < 3; k++) sides[k].value += sides[k].down;
    }
}

// What the keys of a view stand for.
KERNEL resolve(long long count, const real* clip, const long long* faces, const unsigned long long* keys, int height,
               int width, int* face, real* barycentric, real* depth) {
    long long i = thread();
    if (i >= count) return;
    bool covered = keys[i] != ~0ull;
    Weights found = {0, 0, 1};
    if (covered) {
        const long long* f = faces + 3 * (keys[i] & 0xffffffffu);
        found = homogeneous(corner(clip, f[0]), corner(clip, f[1]), corner(clip, f[2]), across(i % width, width),
                            up(i / width, height));
    }
    face[i] = covered ? (int)(keys[i] & 0xffffffffu) : -1;
    barycentric[2 * i] = found.u, barycentric[2 * i + 1] = found.v, depth[i] = found.z;
}

// Rows are views, in this kernel and the next ones.
KERNEL interpolate(long long count, const real* attribute, const real* barycentric, const int* face,
                   const long long* faces, int vertices, int channels, real* out) {
    long long n = thread();
    if (n >= count) return;
    long long i = blockIdx.y * count + n;
    bool covered = face[i] >= 0;
    const long long* corners = faces + 3 * (covered ? face[i] : 0);
    const real* values = attribute + (long long)blockIdx.y * vertices * channels;
    real u = barycentric[2 * i], v = barycentric[2 * i + 1];
    for (int c = 0; c < channels; c++) {
        real total = 0;
        if (covered) {
            real p = values[corners[0] * channels + c], q = values[corners[1] * channels + c];
            total = u * p + v * q + (1 - u - v) * values[corners[2] * channels + c];
        }
        out[i * channels + c] = total;
    }
}

// Pixels share vertices: the sums of `to_attribute` are of one order only by chance, and vary in their last bits.
KERNEL interpolate_backward(long long count, const real* attribute, const real* barycentric, const int* face,
                            const long long* faces, int vertices, int channels, const real* gradient,
                            real* to_attribute, real* to_barycentric) {
    long long n = thread();
    if (n >= count) return;
    long long i = blockIdx.y * count + n, view = (long long)blockIdx.y * vertices * channels;
    real by_u = 0, by_v = 0;
    if (face[i] >= 0) {
        const long long* corners = faces + 3 * (long long)face[i];
        long long p = view + corners[0] * channels, q = view + corners[1] * channels, r = view + corners[2] * channels;
        real u = barycentric[2 * i], v = barycentric[2 * i + 1];
        for (int c = 0; c < channels; c++) {
            real g = gradient[i * channels + c];
            by_u += g * (attribute[p + c] - attribute[r + c]);
            by_v += g * (attribute[q + c] - attribute[r + c]);
            if (to_attribute) {
                atomicAdd(to_attribute + p + c, g * u);
                atomicAdd(to_attribute + q + c, g * v);
                atomicAdd(to_attribute + r + c, g * (1 - u - v));
            }
        }
    }
    to_barycentric[2 * i] = by_u, to_barycentric[2 * i + 1] = by_v;
}

struct Linear {
    double by_x, by_y, here;
};

// The weight of the corner opposite an edge, not yet divided by their sum.
__device__ inline Linear linear(Corner a, Corner b, double fx, double fy) {
    double ax = a.x - fx * a.w, ay = a.y - fy * a.w, bx = b.x - fx * b.w, by = b.y - fy * b.w;
    return {ay * b.w - a.w * by, a.w * bx - ax * b.w, ax * by - ay * bx};
}

KERNEL screen_derivatives(long long count, const real* attribute, const long long* attribute_faces, const real* clip,
                          const long long* faces, const int* face, int vertices, int height, int width, int channels,
                          real* out) {
    long long n = thread();
    if (n >= count) return;
    long long i = blockIdx.y * count + n;
    double slopes[3][2] = {};
    if (face[i] >= 0) {
        const long long* f = faces + 3 * (long long)face[i];
        const real* view = clip + 4ll * blockIdx.y * vertices;
        Corner p = corner(view, f[0]), q = corner(view, f[1]), r = corner(view, f[2]);
        double fx = across(n % width, width), fy = up(n / width, height);
        Linear parts[3] = {linear(q, r, fx, fy), linear(r, p, fx, fy), linear(p, q, fx, fy)};
        double by_x = parts[0].by_x + parts[1].by_x + parts[2].by_x, by_y = parts[0].by_y + parts[1].by_y + parts[2].by_y;
        double whole = parts[0].here + parts[1].here + parts[2].here;
        for (int k = 0; k < 3 && whole != 0; k++) {  // zero if seen exactly edge-on
            slopes[k][0] = (parts[k].by_x * whole - by_x * parts[k].here) / (whole * whole) * 2 / width;
            slopes[k][1] = (parts[k].by_y * whole - by_y * parts[k].here) / (whole * whole) * -2 / height;
        }
    }
    const long long* own = attribute_faces + 3 * (long long)max(face[i], 0);
    for (int c = 0; c < channels; c++)
        for (int axis = 0; axis < 2; axis++) {
            double total = 0;
            for (int k = 0; k < 3 && face[i] >= 0; k++) total += slopes[k][axis] * attribute[own[k] * channels + c];
            out[(i * channels + c) * 2 + axis] = total;
        }
}
