// What all kernels share. `real` is float or double, a macro; a kernel's first parameter is how many threads have work.
// The same sources compile for the processor, thread after thread, so no kernel uses shared memory or warps.

#define KERNEL extern "C" __global__ void __launch_bounds__(256, 1)

__device__ inline long long thread() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ inline long long clamped(long long i, long long size) { return i < 0 ? 0 : i < size ? i : size - 1; }
