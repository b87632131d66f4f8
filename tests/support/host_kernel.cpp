// sampling_kernel.h for the host: the kernel's threads as loops. A library for ctypes, or with FOURPHASE_MAIN a program
// that runs one case from a file, so that a sanitizer sees buffers of exactly the size that was given.
#include "sampling_kernel.h"

#include <cstddef>

struct Launch {
    int grid[3], block[3], general, is_half, is_float;
};

extern "C" {

int host_plan_bytes() { return (int)sizeof(FourphasePlan); }

void host_launch(const Launch *launch, const void *plan, const void *voxels, void *output)
{
    const FourphaseVoxels given = {voxels, launch->is_float};
    const int *grid = launch->grid, *block = launch->block;
    for (int z = 0; z < grid[2] * block[2]; ++z)
        for (int y = 0; y < grid[1] * block[1]; ++y)
            for (int x = 0; x < grid[0] * block[0]; ++x)
                fourphase_write(plan, given, launch->general, output, launch->is_half, z, y, x);
}

void host_hu(const void *packed, const void *voxels, int is_float, int general, float *output)
{
    const FourphasePlan *plan = (const FourphasePlan *)packed;
    const FourphaseVoxels given = {voxels, is_float};
    for (int z = 0; z < plan->size[0]; ++z)
        for (int y = 0; y < plan->size[1]; ++y)
            for (int x = 0; x < plan->size[2]; ++x)
                *output++ = fourphase_hu(plan, given, general, z, y, x);
}

void host_half(const float *values, int count, unsigned short *output)
{
    for (int i = 0; i < count; ++i)
        output[i] = fourphase_half(values[i]);
}
}

#ifdef FOURPHASE_MAIN
#include <cstdio>
#include <cstdlib>
#include <memory>

static std::unique_ptr<char[]> read_block(std::FILE *file, int bytes)
{
    std::unique_ptr<char[]> block(new char[(size_t)bytes]); // from the heap: 16-byte aligned, its end is guarded
    if (std::fread(block.get(), 1, (size_t)bytes, file) != (size_t)bytes)
        std::exit(3);
    return block;
}

// The file: Launch, three ints (bytes of plan, voxels, output), plan, voxels. Writes the output to standard output.
int main(int, char **arguments)
{
    std::FILE *file = std::fopen(arguments[1], "rb");
    Launch launch;
    int bytes[3];
    if (!file || std::fread(&launch, sizeof launch, 1, file) != 1 || std::fread(bytes, sizeof bytes, 1, file) != 1)
        return 2;
    const auto plan = read_block(file, bytes[0]), voxels = read_block(file, bytes[1]);
    std::fclose(file);
    std::unique_ptr<char[]> output(new char[(size_t)bytes[2]]);
    host_launch(&launch, plan.get(), voxels.get(), output.get());
    return std::fwrite(output.get(), 1, (size_t)bytes[2], stdout) == (size_t)bytes[2] ? 0 : 4;
}
#endif
