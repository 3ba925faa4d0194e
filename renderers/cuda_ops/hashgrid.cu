// Multi-resolution hash encoding: `torch_ops.hashgrid` states the layout, `cpu_ops.hashgrid` the three maps.
// FEATURES, a macro, is how many a vertex has. Levels are the rows of the launch, so that neighbours read one table.

struct alignas(FEATURES % 4 == 0 && sizeof(real) == 4 ? 16 : FEATURES % 2 == 0 ? 2 * sizeof(real) : sizeof(real))
Vertex {
    real feature[FEATURES];  // aligned, so that it is read and written at once
};

struct Cell {
    real fraction[3];
    unsigned entry[8];  // of its corners, x slowest
};

__device__ inline Cell locate(const real* x, real scale, long long resolution, unsigned size) {
    Cell cell;
    unsigned vertex[3];
    for (int axis = 0; axis < 3; axis++) {
        real position = fmin(fmax(x[axis], real(0)), real(1)) * scale + real(0.5);
        vertex[axis] = (unsigned)position;
        cell.fraction[axis] = position - real(vertex[axis]);
    }
    bool dense = resolution * resolution * resolution <= size;
    unsigned row = (unsigned)resolution;
    for (int corner = 0; corner < 8; corner++) {
        unsigned i = vertex[0] + (corner >> 2), j = vertex[1] + (corner >> 1 & 1), k = vertex[2] + (corner & 1);
        if (dense) {  // less than twice the size, so that a subtraction does for the modulo
            unsigned entry = i + row * (j + row * k);
            cell.entry[corner] = entry < size ? entry : entry - size;
        } else {  // a hashed level has 2^n entries, so that a mask does
            cell.entry[corner] = (i ^ j * 2654435761u ^ k * 805459861u) & (size - 1);
        }
    }
    return cell;
}

__device__ inline real side(bool upper, real fraction) { return upper ? fraction : 1 - fraction; }

// The slope of a fraction by its coordinate: none across a face that the point was clamped to.
__device__ inline real rate(real x, real scale) { return x >= 0 && x <= 1 ? scale : 0; }

// The slope of a corner's weight by the fraction along an axis.
__device__ inline real weight_slope(const Cell& cell, int corner, int axis) {
    real others = 1;
    for (int other = 0; other < 3; other++)
        if (other != axis) others *= side(corner >> (2 - other) & 1, cell.fraction[other]);
    return corner >> (2 - axis) & 1 ? others : -others;
}

// A corner's weight, or its slope along a direction, given by fractions.
__device__ inline real weight(const Cell& cell, int corner, bool sloped, const real* along) {
    if (!sloped) {
        real product = side(corner >> 2, cell.fraction[0]) * side(corner >> 1 & 1, cell.fraction[1]);
        return product * side(corner & 1, cell.fraction[2]);
    }
    real total = 0;
    for (int axis = 0; axis < 3; axis++) total += along[axis] * weight_slope(cell, corner, axis);
    return total;
}

KERNEL gather(long long count, const real* x, const real* u, const real* table, const real* scales,
              const long long* resolutions, const long long* offsets, real* encoded) {
    long long n = thread(), level = blockIdx.y;
    if (n >= count) return;
    real scale = scales[level], along[3];
    Cell cell = locate(x + 3 * n, scale, resolutions[level], offsets[level + 1] - offsets[level]);
    for (int axis = 0; axis < 3; axis++) along[axis] = u ? u[3 * n + axis] * rate(x[3 * n + axis], scale) : 0;
    const Vertex* vertices = (const Vertex*)table + offsets[level];
    Vertex total = {};
    for (int corner = 0; corner < 8; corner++) {
        Vertex vertex = vertices[cell.entry[corner]];
        real share = weight(cell, corner, u, along);
        for (int f = 0; f < FEATURES; f++) total.feature[f] += share * vertex.feature[f];
    }
    ((Vertex*)encoded)[n * gridDim.y + level] = total;
}

// Points share vertices: sums are of one order only by chance, and vary in their last bits.
KERNEL scatter(long long count, const real* x, const real* u, const real* g, const real* scales,
               const long long* resolutions, const long long* offsets, real* table) {
    long long n = thread(), level = blockIdx.y;
    if (n >= count) return;
    real scale = scales[level], along[3];
    Cell cell = locate(x + 3 * n, scale, resolutions[level], offsets[level + 1] - offsets[level]);
    for (int axis = 0; axis < 3; axis++) along[axis] = u ? u[3 * n + axis] * rate(x[3 * n + axis], scale) : 0;
    Vertex incoming = ((const Vertex*)g)[n * gridDim.y + level];
    Vertex* vertices = (Vertex*)table + offsets[level];
    for (int corner = 0; corner < 8; corner++) {
        real share = weight(cell, corner, u, along);
        real* vertex = vertices[cell.entry[corner]].feature;
        for (int f = 0; f < FEATURES; f++) atomicAdd(vertex + f, share * incoming.feature[f]);
    }
}

KERNEL slope(long long count, const real* x, const real* table, const real* v, const real* scales,
             const long long* resolutions, const long long* offsets, int levels, real* out) {
    long long n = thread();
    if (n >= count) return;
    real total[3] = {};
    for (int level = 0; level < levels; level++) {
        real scale = scales[level];
        Cell cell = locate(x + 3 * n, scale, resolutions[level], offsets[level + 1] - offsets[level]);
        Vertex incoming = ((const Vertex*)v)[n * levels + level];
        const Vertex* vertices = (const Vertex*)table + offsets[level];
        real change[3] = {};
        for (int corner = 0; corner < 8; corner++) {
            Vertex vertex = vertices[cell.entry[corner]];
            real pulled = 0;
            for (int f = 0; f < FEATURES; f++) pulled += incoming.feature[f] * vertex.feature[f];
            for (int axis = 0; axis < 3; axis++) change[axis] += weight_slope(cell, corner, axis) * pulled;
        }
        for (int axis = 0; axis < 3; axis++) total[axis] += rate(x[3 * n + axis], scale) * change[axis];
    }
    for (int axis = 0; axis < 3; axis++) out[3 * n + axis] = total[axis];
}
