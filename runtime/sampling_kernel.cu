/* The kernels' names and their threads; sampling_kernel.h computes.
 *
 * One thread per output (z, y, x): block (32, 8, 1) over x, y; the grid's z is the output's. `plan` and `voxels` are
 * device memory, `output` is one phase's part of the network's input. */
#include "sampling_kernel.h"

#define FOURPHASE_THREAD                                                                                               \
    (int)blockIdx.z, (int)(blockIdx.y * blockDim.y + threadIdx.y), (int)(blockIdx.x * blockDim.x + threadIdx.x)

#define FOURPHASE_KERNEL(name, general, is_half)                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(const void *__restrict__ plan, const void *__restrict__ voxels, int is_float, void *__restrict__ output) \
    {                                                                                                                  \
        const FourphaseVoxels given = {voxels, is_float};                                                              \
        fourphase_write(plan, given, general, output, is_half, FOURPHASE_THREAD);                                      \
    }

FOURPHASE_KERNEL(fourphase_separable_fp32, 0, 0)
FOURPHASE_KERNEL(fourphase_separable_fp16, 0, 1)
FOURPHASE_KERNEL(fourphase_general_fp32, 1, 0)
FOURPHASE_KERNEL(fourphase_general_fp16, 1, 1)
