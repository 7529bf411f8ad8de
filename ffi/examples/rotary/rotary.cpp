// The rotation of rotary.c from C++: handles that free themselves, errors as exceptions.
// It is built with rotary.c, as build/rotary_cpp.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "longrope.h"

#include "../gpu.h"

namespace {

class Error : public std::runtime_error {
   public:
    explicit Error(longrope_status status)
        : std::runtime_error(longrope_last_error_message()), status_(status) {}
    longrope_status status() const noexcept { return status_; }

   private:
    longrope_status status_;
};

void check(longrope_status status) {
    if (status != LONGROPE_STATUS_OK) throw Error(status);
}

struct Destroy {
    void operator()(longrope_context *context) const noexcept { longrope_context_destroy(context); }
    void operator()(longrope_factor_sets *sets) const noexcept { longrope_factor_sets_destroy(sets); }
};
using Context = std::unique_ptr<longrope_context, Destroy>;
using FactorSets = std::unique_ptr<longrope_factor_sets, Destroy>;

FactorSets sets_from_json(std::string_view json) {
    longrope_factor_sets *sets = nullptr;
    check(longrope_factor_sets_from_json(json.data(), json.size(), 0, LONGROPE_ANGLES_EXACT, &sets));
    return FactorSets(sets);
}

Context make_context(int device) {
    longrope_context *context = nullptr;
    check(longrope_context_create(device, &context));
    return Context(context);
}

constexpr int kTokens = 3, kHeadDim = 8;
constexpr std::array<int, 2> kHeads = {2, 1};

// A contiguous tensor that is rotated in place.
longrope_tensor_io in_place(void *data, int heads) {
    longrope_tensor_io io = {};
    io.input = {data, LONGROPE_DTYPE_F32, {1, kTokens, heads, kHeadDim}, {0, 0, 0, 0}};
    return io;
}

using Values = std::array<std::vector<float>, 2>;  // queries and keys

void print(const char *name, const std::vector<float> &x, int heads) {
    for (int row = 0; row < kTokens * heads; ++row) {
        std::printf("%s[%d][%d]:", name, row / heads, row % heads);
        for (int i = 0; i < kHeadDim; ++i) std::printf(" %.9g", static_cast<double>(x[row * kHeadDim + i]));
        std::printf("\n");
    }
}

double difference_on_gpu(const Context &context, const longrope_rotary_desc &desc, gpu &g, const Values &in,
                         const Values &expected) {
    std::array<std::uint64_t, 2> device = {};
    std::array<longrope_tensor_io, 2> tensors = {};
    auto must = [](int error) {
        if (error != 0) throw std::runtime_error("the driver failed with " + std::to_string(error));
    };
    for (std::size_t t = 0; t < 2; ++t) {
        must(g.allocate(&device[t], in[t].size() * sizeof(float)));
        must(g.to_device(device[t], in[t].data(), in[t].size() * sizeof(float), g.stream));
        tensors[t] = in_place(reinterpret_cast<void *>(static_cast<std::uintptr_t>(device[t])), kHeads[t]);
    }
    check(longrope_rotary_run(context.get(), &desc, tensors.data(), tensors.size(), g.stream));
    double worst = 0;
    for (std::size_t t = 0; t < 2; ++t) {
        std::vector<float> out(in[t].size());
        must(g.to_host(out.data(), device[t], out.size() * sizeof(float), g.stream));
        must(g.stream_synchronize(g.stream));
        for (std::size_t i = 0; i < out.size(); ++i) {
            worst = std::fmax(worst, std::fabs(static_cast<double>(out[i]) - static_cast<double>(expected[t][i])));
        }
        must(g.release(device[t]));
    }
    return worst;
}

}  // namespace

int main() try {
    const FactorSets sets = sets_from_json(R"({
        "head_dim": 8, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0, "rope_scaling": {"rope_type": "longrope",
        "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 8, 32]}})");

    longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
    desc.sets = sets.get();
    desc.position_offset = 100000;
    desc.choice_length = 100003;

    Values in;
    for (int i = 0; i < kTokens * kHeads[0] * kHeadDim; ++i) in[0].push_back(static_cast<float>(i % 7 - 3) / 4);
    for (int i = 0; i < kTokens * kHeads[1] * kHeadDim; ++i) in[1].push_back(static_cast<float>(i % 5 - 2) / 2);
    Values out = in;
    const std::array<longrope_tensor_io, 2> tensors = {in_place(out[0].data(), kHeads[0]),
                                                      in_place(out[1].data(), kHeads[1])};
    check(longrope_rotary_cpu(&desc, tensors.data(), tensors.size()));
    print("q", out[0], kHeads[0]);
    print("k", out[1], kHeads[1]);

    gpu g;
    const bool has_gpu = gpu_open(&g) != 0;
    try {
        const Context context = make_context(0);
        if (has_gpu) {
            std::printf("gpu: largest difference from the CPU %.3g\n", difference_on_gpu(context, desc, g, in, out));
        } else {
            std::printf("gpu: kernels loaded, but no CUDA context to run them in\n");
        }
    } catch (const Error &error) {
        std::printf("gpu: %s (status %d)\n", error.what(), static_cast<int>(error.status()));
    }
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "longrope: %s\n", error.what());
    return 1;
}
