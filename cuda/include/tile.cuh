// Tiles of 16-bit elements in shared memory: rows of a head dimension, swizzled so that matrix loads meet no bank twice.
//
// A row is kDim / 8 chunks of 16 bytes. Chunk c of row r lies at chunk c ^ swizzle(r) of that row: eight rows of one column
// of chunks, which is what a matrix load reads at once, then lie in eight different groups of four banks.
#pragma once

#include "async_copy.cuh"
#include "elements.cuh"

namespace longrope {

// An address in shared memory, as instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void *at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// The layout of a tile of rows of kDim elements.
template <int kDim>
struct Tile {
    static constexpr int kChunks = kDim / 8;
    static constexpr int kRowBytes = kDim * 2;
    static_assert(kDim % 64 == 0 || kDim == 96, "other widths need a swizzle of their own");

    // Rows of 192 bytes step by half of the banks already.
    static __device__ __forceinline__ int swizzle(int row) { return kDim == 96 ? (row >> 1) & 3 : row & 7; }

    // Bytes from the start of the tile to a chunk.
    static __device__ __forceinline__ int at(int row, int chunk) { return row * kRowBytes + ((chunk ^ swizzle(row)) << 4); }

    // From the address of chunk c of a row to that of chunk c + step, where step is even, and c 0 or 1. One operation or
    // two, so that no register needs to hold the result for the next tile. Tiles begin at multiples of 128 bytes.
    static __device__ __forceinline__ uint32_t advance(uint32_t address, int step) {
        if constexpr (kDim == 96) {
            // Swizzles change the two lowest bits; a row begins at a multiple of 64 bytes.
            return (address ^ (step & 3) << 4) + (step >> 2 << 6);
        } else {
            return (address ^ (step & 7) << 4) + (step >> 3 << 7);
        }
    }
};

// What a thread loads of tiles of kRows rows: one chunk of each kRowsAPass-th row.
template <int kDim, int kRows, int kThreads>
struct TilePasses {
    using Layout = Tile<kDim>;
    // A multiple of 4 rows: where a row does not divide the threads, some of them load nothing.
    static constexpr int kRowsAPass = kThreads / Layout::kChunks / 4 * 4;
    static constexpr int kPasses = kRows / kRowsAPass;
    static_assert(kRowsAPass > 0 && kPasses * kRowsAPass == kRows, "a tile is a whole number of passes");

    int row, dims;  // this thread's row in a pass; how many dimensions of its chunk there are
    int shared;     // bytes to this thread's chunk in pass 0

    __device__ __forceinline__ TilePasses(int head_dim, int thread) {
        const int chunk = thread % Layout::kChunks;
        row = thread / Layout::kChunks;
        dims = head_dim - chunk * 8;
        shared = Layout::at(row, chunk);
    }

    __device__ __forceinline__ bool is_idle() const { return Layout::kChunks * kRowsAPass < kThreads && row >= kRowsAPass; }

    // The bytes from pass 0 to a pass. Passes of four rows see two patterns of the swizzle, which differ in one bit.
    __device__ __forceinline__ int pass_offset(int pass) const {
        const int offset = pass * kRowsAPass * Layout::kRowBytes;
        if (kRowsAPass % 8 == 0 || pass % 2 == 0) return offset;
        return shared & 64 ? offset - 64 : offset + 64;
    }
};

// Loads the tiles of a tensor, from the last row to the first.
//
// A tile of kRows rows takes kRows / kRowsAPass passes, and a loader that took them points to the tile before. Rows that are
// not there, and dimensions from the head dimension on, are filled with zeros: a value beyond the end must not meet a weight
// of zero as NaN.
template <class T, int kDim, int kRows, int kThreads, bool kVector>
struct TileLoader : TilePasses<kDim, kRows, kThreads> {
    using Passes = TilePasses<kDim, kRows, kThreads>;
    using Passes::dims, Passes::kPasses, Passes::kRowsAPass, Passes::pass_offset, Passes::row, Passes::shared;

    const T *from;  // what this thread loads next

    // `tile`: the first row of the last tile of a head.
    __device__ __forceinline__ TileLoader(const T *tile, int64_t row_stride, int64_t dim_stride, int head_dim, int thread)
        : Passes(head_dim, thread) {
        from = tile + (kRows - kRowsAPass + row) * row_stride + thread % Passes::Layout::kChunks * 8 * dim_stride;
    }

    // Begins to load a tile, of which the first `rows` rows are there, or all if kWhole.
    template <bool kWhole>
    __device__ __forceinline__ void begin(char *tile, int64_t row_stride, int64_t dim_stride, int rows) {
        const bool idle = this->is_idle();
        if constexpr (kVector) {
#pragma unroll
            for (int pass = kPasses - 1; pass >= 0; --pass, from -= kRowsAPass * row_stride) {
                const bool there = kWhole || row + pass * kRowsAPass < rows;
                if (!idle) async_copy_16_or_zero(tile + shared + pass_offset(pass), from, there && dims > 0);
            }
        } else {
#pragma unroll 1
            for (int pass = kPasses - 1; pass >= 0; --pass, from -= kRowsAPass * row_stride) {
                if (idle) continue;
                const int count = kWhole || row + pass * kRowsAPass < rows ? dims : 0;
                Vector<T, 8> x;
#pragma unroll
                for (int i = 0; i < 8; ++i) x.element[i] = i < count ? from[i * dim_stride] : narrow<T>(0.0f);
                *reinterpret_cast<Vector<T, 8> *>(tile + shared + pass_offset(pass)) = x;
            }
        }
    }
};

}  // namespace longrope
