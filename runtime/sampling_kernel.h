/* One voxel of the network's input from the uploaded voxels: the contract's resampling, resizing, windows, normalisation.
 *
 * The only place where the GPU path computes. nvcc and NVRTC compile it for the device (through sampling_kernel.cu), any
 * C99 or C++ compiler for the host (the tests, which hold it against preprocess.py), so it includes nothing on the
 * device and uses no CUDA call. Every order of additions is that of preprocess.py, and products are never fused into
 * additions (--fmad=false, -ffp-contract=off): device and host must give the same bits, NumPy gives the same HU to 1e-3.
 *
 * Positions are 64-bit fixed point, 1/2^32 of a voxel or of a millimetre: floats would put a sample near the volume's
 * surface on its wrong side, and most GPUs compute doubles at a small fraction of the rate of integers.
 *
 * It reads what the plan says and checks nothing: kernel_plan.py writes the plan. */
#ifndef FOURPHASE_SAMPLING_KERNEL_H
#define FOURPHASE_SAMPLING_KERNEL_H

#if defined(__CUDACC__)
#define FOURPHASE_DEVICE static __device__ __forceinline__
#else
#include <string.h>
#define FOURPHASE_DEVICE static inline
#endif

typedef long long FourphaseFixed;
#define FOURPHASE_ONE ((FourphaseFixed)1 << 32)
#define FOURPHASE_HALF ((FourphaseFixed)1 << 31)

/* What sampling one phase needs. The tables follow in the same memory; NAME_at says how many bytes from the plan's
 * start. Groups of three are z, y, x in patient space, or slice, row, column of the series, as noted. */
typedef struct FourphasePlan {
    int size[3];          /* outputs along z, y, x */
    int channels;
    int window[3];        /* uploaded voxels: slices, rows, columns */
    int stride[3];        /* separable: voxels from one to the next along z, y, x */
    int taps[3];          /* weights of an output along z, y, x */
    int index_at[3];      /* int (outputs, taps): which voxel (separable) or 1 mm sample (general), along z, y, x */
    int weight_at[3];     /* float (outputs, taps) */
    int channel_at;       /* float (channels, 4): low, high, factor, summand */
    float background_hu;
    /* The general path only. */
    int first[3];         /* of the window in the series: slice, row, column */
    int count[3];         /* of the series: slices, rows, columns */
    int part_at[3];       /* fixed (samples, 3): what a sample's z, y, x adds to its depth (mm), row, column */
    int slice_at;         /* fixed (slices, 3): depth (mm), row and column of the slice's origin */
    int gap_at;           /* float (slices): 1 / (fixed distance to the next slice), 0 for the last one */
    int edge_at;          /* fixed (2): first and last depth at which the outer slices still hold */
} FourphasePlan;

/* The uploaded voxels of a phase, HU: short, or float where `is_float`. */
typedef struct FourphaseVoxels {
    const void *values;
    int is_float;
} FourphaseVoxels;

FOURPHASE_DEVICE const void *fourphase_table(const FourphasePlan *plan, int at)
{
    return (const char *)plan + at;
}

/* HU above background, so that no weight means background. */
FOURPHASE_DEVICE float fourphase_voxel(const FourphasePlan *plan, FourphaseVoxels voxels, int at)
{
    float hu = voxels.is_float ? ((const float *)voxels.values)[at] : (float)((const short *)voxels.values)[at];
    return hu - plan->background_hu;
}

FOURPHASE_DEVICE FourphaseFixed fourphase_clamped(FourphaseFixed value, FourphaseFixed low, FourphaseFixed high)
{
    return value < low ? low : value > high ? high : value;
}

/* The part of a position that is not negative which lies between two voxels, [0, 1]. */
FOURPHASE_DEVICE float fourphase_fraction(FourphaseFixed position)
{
    return (float)(unsigned int)(position & (FOURPHASE_ONE - 1)) * 2.3283064365386963e-10f; /* 2^-32 */
}

/* Bilinear on one slice (an index into the series); 0 beyond half a voxel outside its outermost centres. */
FOURPHASE_DEVICE float fourphase_on_slice(
    const FourphasePlan *plan, FourphaseVoxels voxels, int slice, FourphaseFixed row, FourphaseFixed column)
{
    FourphaseFixed last_row = (FourphaseFixed)(plan->count[1] - 1) << 32;
    FourphaseFixed last_column = (FourphaseFixed)(plan->count[2] - 1) << 32;
    if (row < -FOURPHASE_HALF || row > last_row + FOURPHASE_HALF || column < -FOURPHASE_HALF ||
        column > last_column + FOURPHASE_HALF)
        return 0.0f;
    row = fourphase_clamped(row, 0, last_row);
    column = fourphase_clamped(column, 0, last_column);
    int rows = plan->window[1], columns = plan->window[2];
    int plane = (int)fourphase_clamped(slice - plan->first[0], 0, plan->window[0] - 1);
    int top = (int)fourphase_clamped((row >> 32) - plan->first[1], 0, rows - 1);
    int left = (int)fourphase_clamped((column >> 32) - plan->first[2], 0, columns - 1);
    int far_column = left + 1 < columns ? left + 1 : left;
    int upper = (plane * rows + top) * columns;
    int lower = top + 1 < rows ? upper + columns : upper;
    float down = fourphase_fraction(row), right = fourphase_fraction(column);
    float above = fourphase_voxel(plan, voxels, upper + left) * (1.0f - right) +
                  fourphase_voxel(plan, voxels, upper + far_column) * right;
    float below = fourphase_voxel(plan, voxels, lower + left) * (1.0f - right) +
                  fourphase_voxel(plan, voxels, lower + far_column) * right;
    return above * (1.0f - down) + below * down;
}

/* The last slice but one at most whose depth is not above `depth`; slices need not be evenly spaced. */
FOURPHASE_DEVICE int fourphase_slice_below(const FourphaseFixed *slices, int count, FourphaseFixed depth)
{
    int low = 0, high = count > 1 ? count - 2 : 0;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (slices[3 * middle] <= depth)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Trilinear at one 1 mm sample: on each of the two slices around it at its projection, so that tilt is exact. */
FOURPHASE_DEVICE float fourphase_sample(const FourphasePlan *plan, FourphaseVoxels voxels, int z, int y, int x)
{
    const FourphaseFixed *slices = (const FourphaseFixed *)fourphase_table(plan, plan->slice_at);
    const FourphaseFixed *edge = (const FourphaseFixed *)fourphase_table(plan, plan->edge_at);
    const float *gaps = (const float *)fourphase_table(plan, plan->gap_at);
    const FourphaseFixed *along_z = (const FourphaseFixed *)fourphase_table(plan, plan->part_at[0]) + 3 * z;
    const FourphaseFixed *along_y = (const FourphaseFixed *)fourphase_table(plan, plan->part_at[1]) + 3 * y;
    const FourphaseFixed *along_x = (const FourphaseFixed *)fourphase_table(plan, plan->part_at[2]) + 3 * x;
    FourphaseFixed depth = along_z[0] + along_y[0] + along_x[0];
    FourphaseFixed row = along_z[1] + along_y[1] + along_x[1];
    FourphaseFixed column = along_z[2] + along_y[2] + along_x[2];
    if (depth < edge[0] || depth > edge[1])
        return 0.0f;
    int last = plan->count[0] - 1;
    depth = fourphase_clamped(depth, slices[0], slices[3 * last]);
    int below = fourphase_slice_below(slices, plan->count[0], depth);
    int above = below < last ? below + 1 : last;
    float weight = (float)(depth - slices[3 * below]) * gaps[below];
    const FourphaseFixed *at = slices + 3 * below, *next = slices + 3 * above;
    float total = (1.0f - weight) * fourphase_on_slice(plan, voxels, below, row - at[1], column - at[2]);
    return total + weight * fourphase_on_slice(plan, voxels, above, row - next[1], column - next[2]);
}

/* HU of one output. The inputs of the weights are voxels, or with `general` the 1 mm samples. */
FOURPHASE_DEVICE float fourphase_hu(
    const FourphasePlan *plan, FourphaseVoxels voxels, int general, int z, int y, int x)
{
    const int *taps = plan->taps;
    const int *iz = (const int *)fourphase_table(plan, plan->index_at[0]) + z * taps[0];
    const int *iy = (const int *)fourphase_table(plan, plan->index_at[1]) + y * taps[1];
    const int *ix = (const int *)fourphase_table(plan, plan->index_at[2]) + x * taps[2];
    const float *wz = (const float *)fourphase_table(plan, plan->weight_at[0]) + z * taps[0];
    const float *wy = (const float *)fourphase_table(plan, plan->weight_at[1]) + y * taps[1];
    const float *wx = (const float *)fourphase_table(plan, plan->weight_at[2]) + x * taps[2];
    float total = 0.0f;
    for (int c = 0; c < taps[2]; ++c) { /* x outermost: preprocess.py contracts z, then y, then x */
        float plane = 0.0f;
        for (int b = 0; b < taps[1]; ++b) {
            float line = 0.0f;
            for (int a = 0; a < taps[0]; ++a) {
                float input = general ? fourphase_sample(plan, voxels, iz[a], iy[b], ix[c])
                                      : fourphase_voxel(plan, voxels,
                                                        iz[a] * plan->stride[0] + iy[b] * plan->stride[1] +
                                                            ix[c] * plan->stride[2]);
                line += wz[a] * input;
            }
            plane += wy[b] * line;
        }
        total += wx[c] * plane;
    }
    return total + plan->background_hu;
}

FOURPHASE_DEVICE unsigned int fourphase_bits(float value)
{
#if defined(__CUDACC__)
    return __float_as_uint(value);
#else
    unsigned int bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

/* IEEE binary16, to nearest, ties to even. In integers, so that the host proves what the device does, and so that NVRTC
 * needs no header of the CUDA toolkit. */
FOURPHASE_DEVICE unsigned short fourphase_half(float value)
{
    unsigned int bits = fourphase_bits(value);
    unsigned int sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (unsigned short)(sign | 0x7e00u); /* NaN */
    if (magnitude >= 0x47800000u)
        return (unsigned short)(sign | 0x7c00u); /* 2^16 and above: infinity */
    unsigned int exponent = magnitude >> 23;
    if (exponent < 102u)
        return (unsigned short)sign; /* below 2^-25: zero */
    /* From 2^-14 on only the bias changes and a carry may run into the exponent; below, the leading one shows. */
    int is_normal = exponent >= 113u;
    unsigned int shift = is_normal ? 13u : 126u - exponent;
    unsigned int exact = is_normal ? magnitude - 0x38000000u : (magnitude & 0x7fffffu) | 0x800000u;
    unsigned int result = exact >> shift, rest = exact & ((1u << shift) - 1u), tie = 1u << (shift - 1u);
    result += rest > tie || (rest == tie && (result & 1u));
    return (unsigned short)(sign | result);
}

/* Writes all channels of output (z, y, x) into (z, channel, y, x), as float or with `is_half` as binary16; outside the
 * output nothing. A NaN passes every window as NaN: it must show. */
FOURPHASE_DEVICE void fourphase_write(
    const void *packed, FourphaseVoxels voxels, int general, void *output, int is_half, int z, int y, int x)
{
    const FourphasePlan *plan = (const FourphasePlan *)packed;
    if (z >= plan->size[0] || y >= plan->size[1] || x >= plan->size[2])
        return;
    float hu = fourphase_hu(plan, voxels, general, z, y, x);
    const float *channel = (const float *)fourphase_table(plan, plan->channel_at);
    long long plane = (long long)plan->size[1] * plan->size[2];
    long long at = z * plan->channels * plane + (long long)y * plan->size[2] + x;
    for (int c = 0; c < plan->channels; ++c, channel += 4, at += plane) {
        float clipped = hu < channel[0] ? channel[0] : hu > channel[1] ? channel[1] : hu;
        float value = clipped * channel[2] + channel[3];
        if (is_half)
            ((unsigned short *)output)[at] = fourphase_half(value);
        else
            ((float *)output)[at] = value;
    }
}

#endif
