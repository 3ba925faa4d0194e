// What CUDA C means to a C++ compiler: kernels are functions, called once for every thread, one after the other.
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Place {
    unsigned x, y, z;
};
static Place blockIdx, threadIdx, blockDim, gridDim;

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
template <class T> T atomicAdd(T* to, T value) { return std::exchange(*to, *to + value); }
template <class T> T atomicMin(T* to, T value) { return std::exchange(*to, min(*to, value)); }
template <class T, class F> T bits(F value) { T same; return std::memcpy(&same, &value, sizeof same), same; }
inline unsigned __float_as_uint(float value) { return bits<unsigned>(value); }
inline long long __double_as_longlong(double value) { return bits<long long>(value); }
using std::isfinite;

// As cuLaunchKernel does it: every parameter is where a pointer says. Blocks run last to first and threads first to
// last, so that a kernel that counts on their order fails.
template <class... T, size_t... I>
void each(void (*kernel)(T...), long long threads, unsigned rows, void** parameters, std::index_sequence<I...>) {
    std::tuple<T...> given{*static_cast<T*>(parameters[I])...};
    blockDim = {256, 1, 1};
    gridDim = {static_cast<unsigned>((threads + 255) / 256), rows, 1};
    for (blockIdx.y = rows; blockIdx.y-- > 0;)
        for (blockIdx.x = gridDim.x; blockIdx.x-- > 0;)
            for (threadIdx.x = 0; threadIdx.x < 256; threadIdx.x++) std::apply(kernel, given);
}

template <class... T> void run(void (*kernel)(T...), long long threads, unsigned rows, void** parameters) {
    each(kernel, threads, rows, parameters, std::index_sequence_for<T...>{});
}
