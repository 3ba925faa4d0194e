// Marching and compositing of ragged rays, one thread a ray; `torch_ops.packed` states the conventions.

const real FAR = 1e30;  // metres; no cube is as far

struct Span {
    real enter, leave;
};

struct Piece {
    long long k;
    real near, far;  // the same where no piece is left
};

// Where a ray enters the cube and where it leaves it.
__device__ inline Span span(const real* origin, const real* direction, real bound, real parallel) {
    Span found = {0, FAR};
    for (int axis = 0; axis < 3; axis++) {
        real inverse = real(1) / (fabs(direction[axis]) < parallel ? parallel : direction[axis]);
        real first = (-bound - origin[axis]) * inverse, second = (bound - origin[axis]) * inverse;
        found.enter = fmax(found.enter, fmin(first, second));
        found.leave = fmin(found.leave, fmax(first, second));
    }
    if (!(found.leave < FAR)) found.leave = found.enter;  // of a ray that is no number
    return found;
}

// The first piece from the k-th on whose middle is occupied.
__device__ inline Piece next(long long k, const real* origin, const real* direction, real shift, const bool* occupied,
                             int cells, real bound, real step, Span inside) {
    real half = real(cells) / real(2), lowest = floor(inside.enter / step - shift);
    for (;; k++) {
        real near = fmax((lowest + real(k) + shift) * step, inside.enter);
        real far = fmin((lowest + real(k + 1) + shift) * step, inside.leave);
        if (!(near < inside.leave)) return {k, inside.leave, inside.leave};
        real middle = (near + far) / real(2);
        long long cell = 0;
        for (int axis = 0; axis < 3; axis++) {
            real corner = (origin[axis] / bound + real(1)) * half, along = direction[axis] / bound * half;
            cell = cell * cells + clamped((long long)(corner + along * middle), cells);
        }
        if (occupied[cell] && far > near) return {k, near, far};
    }
}

KERNEL count_pieces(long long count, const real* origins, const real* directions, const real* shift,
                    const bool* occupied, int cells, real bound, real step, real parallel, long long* counts,
                    long long* first) {
    long long r = thread();
    if (r >= count) return;
    const real *origin = origins + 3 * r, *direction = directions + 3 * r;
    Span inside = span(origin, direction, bound, parallel);
    Piece piece = next(0, origin, direction, shift[r], occupied, cells, bound, step, inside);
    first[r] = piece.k;
    long long found = 0;
    for (; piece.far > piece.near; found++)
        piece = next(piece.k + 1, origin, direction, shift[r], occupied, cells, bound, step, inside);
    counts[r] = found;
}

KERNEL fill_pieces(long long count, const real* origins, const real* directions, const real* shift,
                   const bool* occupied, int cells, real bound, real step, real parallel, const long long* starts,
                   const long long* first, long long* ray, real* near, real* far) {
    long long r = thread();
    if (r >= count) return;
    const real *origin = origins + 3 * r, *direction = directions + 3 * r;
    Span inside = span(origin, direction, bound, parallel);
    long long k = first[r];
    for (long long n = starts[r]; n < starts[r + 1]; n++) {
        Piece piece = next(k, origin, direction, shift[r], occupied, cells, bound, step, inside);
        k = piece.k + 1;
        ray[n] = r, near[n] = piece.near, far[n] = piece.far;
    }
}

// The share of the light reaching a sample that it stops.
__device__ inline real opacity(real density, real near, real far) { return -expm1(-density * (far - near)); }

KERNEL transmittance(long long count, const real* density, const long long* starts, const real* near, const real* far,
                     real* reaching) {
    long long r = thread();
    if (r >= count) return;
    real light = 1;
    for (long long n = starts[r]; n < starts[r + 1]; n++) {
        reaching[n] = light;
        light -= light * opacity(density[n], near[n], far[n]);
    }
}

KERNEL weigh(long long count, const real* density, const long long* starts, const real* near, const real* far,
             real* alpha, real* depth, real* weights) {
    long long r = thread();
    if (r >= count) return;
    real light = 1, distance = 0;
    for (long long n = starts[r]; n < starts[r + 1]; n++) {
        real weight = light * opacity(density[n], near[n], far[n]);
        light -= weight;
        weights[n] = weight;
        distance += weight * (near[n] + far[n]) / real(2);
    }
    alpha[r] = 1 - light, depth[r] = distance;
}

// One thread a channel of a ray, so that neighbours read neighbours.
KERNEL accumulate(long long count, const real* values, const real* weights, const long long* starts, int channels,
                  real* accumulated) {
    long long i = thread();
    if (i >= count) return;
    long long r = i / channels, c = i % channels;
    real total = 0;
    for (long long n = starts[r]; n < starts[r + 1]; n++) total += weights[n] * values[n * channels + c];
    accumulated[i] = total;
}

// With q the gradient of a weight, that of density_i length_i is T_(i+1) q_i - sum over j > i of w_j q_j.
KERNEL composite_backward(long long count, const real* values, const real* weights, const long long* starts,
                          const real* near, const real* far, int channels, const real* to_accumulated,
                          const real* to_alpha, const real* to_depth, const real* to_weights, real* to_density,
                          real* to_values) {
    long long r = thread();
    if (r >= count) return;
    real light = 1, behind = 0;
    for (long long n = starts[r]; n < starts[r + 1]; n++) light -= weights[n];
    for (long long n = starts[r + 1] - 1; n >= starts[r]; n--) {
        real q = to_weights[n] + to_alpha[r] + to_depth[r] * (near[n] + far[n]) / real(2);
        for (int c = 0; c < channels; c++) {
            q += to_accumulated[r * channels + c] * values[n * channels + c];
            to_values[n * channels + c] = to_accumulated[r * channels + c] * weights[n];
        }
        to_density[n] = (light * q - behind) * (far[n] - near[n]);
        behind += weights[n] * q;
        light += weights[n];
    }
}
