// What CUDA C means to a C++ compiler: kernels are functions, called once for every thread, one after the other.
#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Place {
    unsigned x, y, z;
};
static Place blockIdx, threadIdx, blockDim, gridDim;

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
template <class T> T replaced(T* at, T value) {
    T before = *at;
    *at = value;
    return before;
}
template <class T> T atomicAdd(T* to, T value) { return replaced(to, *to + value); }
template <class T> T atomicMin(T* to, T value) { return replaced(to, min(*to, value)); }
template <class T, class F> T bits(F value) {
    T same;
    memcpy(&same, &value, sizeof same);
    return same;
}
inline unsigned __float_as_uint(float value) { return bits<unsigned>(value); }
inline long long __double_as_longlong(double value) { return bits<long long>(value); }

// Every parameter is where a pointer says, as for cuLaunchKernel: read one after the other, then call.
template <class Kernel, class... Known> void call(Kernel kernel, void**, void (*)(), Known... known) { kernel(known...); }
template <class Kernel, class Next, class... Rest, class... Known>
void call(Kernel kernel, void** parameters, void (*)(Next, Rest...), Known... known) {
    void (*rest)(Rest...) = nullptr;
    call(kernel, parameters + 1, rest, known..., *static_cast<Next*>(*parameters));
}

// Blocks run last to first and threads first to last, so that a kernel that counts on their order fails.
template <class Kernel> void run(Kernel kernel, long long threads, unsigned rows, void** parameters) {
    blockDim = {256, 1, 1};
    gridDim = {static_cast<unsigned>((threads + 255) / 256), rows, 1};
    for (blockIdx.y = rows; blockIdx.y-- > 0;)
        for (blockIdx.x = gridDim.x; blockIdx.x-- > 0;)
            for (threadIdx.x = 0; threadIdx.x < 256; threadIdx.x++) call(kernel, parameters, kernel);
}
