// What an engine does for one layer: a prompt of each of two sequences goes into a paged cache and attends to itself, then
// tokens are decoded one by one, by a CUDA graph that is captured once. One sequence outgrows the model's original context on
// the way: its keys are cached as they came and rotated while they are read, so that it changes to the long factors from one
// step to the next, in the same graph.
//
//   scripts/install-library --prefix ~/longrope
//   cmake -S ffi/examples/decode -B build -DCMAKE_PREFIX_PATH=~/longrope && cmake --build build && build/decode
//
// The CPU form says what is right. On a GPU the same runs in bf16, and the largest difference is printed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "longrope.h"

#include "../gpu.h"

namespace {

// The longest sequence passes the original length, and so to the long factors.
constexpr int64_t original_length = 44, max_length = 16 * original_length;
constexpr int64_t sequences = 2, query_heads = 4, key_heads = 2, head_dim = 64;
constexpr int64_t page_size = 16, table_width = 4, steps = 8;
constexpr int64_t prompts[sequences] = {40, 21};
constexpr int64_t prompt_tokens = prompts[0] + prompts[1];
constexpr int64_t query_row = query_heads * head_dim, key_row = key_heads * head_dim;
// The pages of a sequence lie anywhere.
constexpr int32_t table[sequences][table_width] = {{5, 2, 7, 0}, {3, 6, 1, 4}};

void check(longrope_status status) {
    if (status != LONGROPE_STATUS_OK) throw std::runtime_error(longrope_last_error_message());
}

void check_driver(int error, const char *what) {
    if (error != 0) throw std::runtime_error(std::string(what) + " failed with CUDA error " + std::to_string(error));
}

struct Destroy {
    void operator()(longrope_config *config) const noexcept { longrope_config_destroy(config); }
    void operator()(longrope_context *context) const noexcept { longrope_context_destroy(context); }
    void operator()(longrope_factor_sets *sets) const noexcept { longrope_factor_sets_destroy(sets); }
};
using Context = std::unique_ptr<longrope_context, Destroy>;
using Sets = std::unique_ptr<longrope_factor_sets, Destroy>;

// Numbers that bf16 holds exactly, so that both sides begin with the same.
float number(int64_t sequence, int64_t token, int64_t i, int64_t of) {
    return static_cast<float>((sequence * 31 + token * 5 + i * 7 + token * i % 11 + of * 3) % 17 - 8) / 16;
}

// Rows of queries (0), keys (1) or values (2) of the tokens from `first` on.
std::vector<float> rows(int64_t sequence, int64_t first, int64_t tokens, int64_t of) {
    const int64_t row = of == 0 ? query_row : key_row;
    std::vector<float> out;
    for (int64_t token = first; token < first + tokens; ++token) {
        for (int64_t i = 0; i < row; ++i) out.push_back(number(sequence, token, i, of));
    }
    return out;
}

// Half the dimensions of a head, with factors from 1 to 16.
Sets factor_sets() {
    std::vector<double> factors(head_dim / 2);
    for (size_t i = 0; i < factors.size(); ++i) factors[i] = std::pow(16.0, static_cast<double>(i) / (factors.size() - 1));
    longrope_factors given = LONGROPE_FACTORS_INIT;
    given.pairs = static_cast<int64_t>(factors.size());
    given.long_factors = factors.data();
    given.original_length = original_length;
    given.max_length = max_length;
    longrope_config *made = nullptr;
    check(longrope_config_from_factors(&given, &made));
    const std::unique_ptr<longrope_config, Destroy> config(made);
    size_t bytes = 0;
    check(longrope_config_to_json(config.get(), LONGROPE_JSON_ROPE_SCALING, nullptr, 0, &bytes));
    std::string json(bytes + 1, '\0');
    check(longrope_config_to_json(config.get(), LONGROPE_JSON_ROPE_SCALING, json.data(), json.size(), &bytes));
    longrope_factor_sets *sets = nullptr;
    check(longrope_factor_sets_from_json(json.data(), bytes, 0, LONGROPE_ANGLES_EXACT, &sets));
    return Sets(sets);
}

longrope_tensor tensor(void *data, longrope_dtype dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim = head_dim) {
    return {data, dtype, {batch, length, heads, dim}, {0, 0, 0, 0}};
}

// The outputs of the tokens from `first` to before `length` of a sequence that is then `length` tokens long.
std::vector<float> on_cpu(const Sets &sets, int64_t sequence, int64_t first, int64_t length) {
    const int64_t tokens = length - first;
    std::vector<float> q = rows(sequence, first, tokens, 0), k = rows(sequence, 0, length, 1), v = rows(sequence, 0, length, 2);
    std::vector<float> out(q.size());
    const auto rotate = [&](std::vector<float> &x, int64_t offset, int64_t count, int64_t heads) {
        longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
        desc.sets = sets.get();
        desc.position_offset = offset;
        desc.choice_length = length;
        longrope_tensor_io io{};
        io.input = tensor(x.data(), LONGROPE_DTYPE_F32, 1, count, heads);
        check(longrope_rotary_cpu(&desc, &io, 1));
    };
    rotate(q, first, tokens, query_heads);
    rotate(k, 0, length, key_heads);
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    desc.causal = 1;
    desc.query_offset = first;
    longrope_attention_tensors tensors{};
    tensors.q = tensor(q.data(), LONGROPE_DTYPE_F32, 1, tokens, query_heads);
    tensors.k = tensor(k.data(), LONGROPE_DTYPE_F32, 1, length, key_heads);
    tensors.v = tensor(v.data(), LONGROPE_DTYPE_F32, 1, length, key_heads);
    tensors.out = tensor(out.data(), LONGROPE_DTYPE_F32, 1, tokens, query_heads);
    check(longrope_attention_cpu(&desc, &tensors));
    return out;
}

// Device memory, freed with it.
class Memory {
   public:
    Memory(const gpu &g, size_t bytes) : g_(g) {
        check_driver(g.allocate(&address_, std::max<size_t>(bytes, 16)), "cuMemAlloc");
    }
    ~Memory() { g_.release(address_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    void *get() const { return reinterpret_cast<void *>(address_); }

    template <class T>
    void put(const std::vector<T> &host, size_t at = 0) const {
        const size_t bytes = host.size() * sizeof(T);
        check_driver(g_.to_device(address_ + at * sizeof(T), host.data(), bytes, g_.stream), "cuMemcpyHtoDAsync");
        // The host's memory may go away before a copy from it is done.
        check_driver(g_.stream_synchronize(g_.stream), "cuStreamSynchronize");
    }
    template <class T>
    std::vector<T> take(size_t count) const {
        std::vector<T> host(count);
        check_driver(g_.to_host(host.data(), address_, count * sizeof(T), g_.stream), "cuMemcpyDtoHAsync");
        check_driver(g_.stream_synchronize(g_.stream), "cuStreamSynchronize");
        return host;
    }

   private:
    const gpu &g_;
    uint64_t address_ = 0;
};

// The upper halves of numbers whose lower halves are zero.
std::vector<uint16_t> bf16(const std::vector<float> &x) {
    std::vector<uint16_t> out(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], sizeof bits);
        out[i] = static_cast<uint16_t>(bits >> 16);
    }
    return out;
}

// What a graph needs of the driver beside the rest.
struct Graphs {
    int (*begin)(void *, int) = nullptr;
    int (*end)(void *, void **) = nullptr;
    int (*instantiate)(void **, void *, unsigned long long) = nullptr;
    int (*launch)(void *, void *) = nullptr;
    int (*destroy)(void *) = nullptr;
    int (*destroy_exec)(void *) = nullptr;

    explicit Graphs(gpu &g) {
        if (!gpu_find(&g, "cuStreamBeginCapture_v2", &begin) || !gpu_find(&g, "cuStreamEndCapture", &end) ||
            !gpu_find(&g, "cuGraphInstantiateWithFlags", &instantiate) || !gpu_find(&g, "cuGraphLaunch", &launch) ||
            !gpu_find(&g, "cuGraphDestroy", &destroy) || !gpu_find(&g, "cuGraphExecDestroy", &destroy_exec)) {
            throw std::runtime_error("the driver has no graphs");
        }
    }
};

double difference(const float *a, const float *b, size_t count) {
    double worst = 0;
    // Written so that a NaN is the worst of all.
    for (size_t i = 0; i < count; ++i) {
        const double d = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
    }
    return worst;
}

// The whole on a GPU. Returns the largest difference from the CPU's outputs, of the prompts and then of each step.
double on_gpu(const longrope_context *context, gpu &g, const Sets &sets) {
    const Graphs graphs(g);
    const size_t cache_elements = sequences * table_width * page_size * key_row;
    const Memory k_pages(g, cache_elements * 2), v_pages(g, cache_elements * 2), lengths(g, sequences * 4);
    const Memory page_table(g, sizeof table), starts(g, (sequences + 1) * 4), status(g, 4);
    // New tokens; a step takes the first rows of the same memory.
    const Memory q(g, prompt_tokens * query_row * 2), k(g, prompt_tokens * key_row * 2), v(g, prompt_tokens * key_row * 2);
    const Memory out(g, prompt_tokens * query_row * 4);
    status.put(std::vector<uint32_t>{0});
    page_table.put(std::vector<int32_t>(&table[0][0], &table[0][0] + sequences * table_width));
    starts.put(std::vector<int32_t>{0, static_cast<int32_t>(prompts[0]), static_cast<int32_t>(prompt_tokens)});

    longrope_kv_cache cache = LONGROPE_KV_CACHE_INIT;
    cache.page_kind = LONGROPE_PAGES_TABLE;
    cache.k = tensor(k_pages.get(), LONGROPE_DTYPE_BF16, sequences * table_width, page_size, key_heads);
    cache.v = tensor(v_pages.get(), LONGROPE_DTYPE_BF16, sequences * table_width, page_size, key_heads);
    cache.lengths = lengths.get();
    cache.page_table = static_cast<const int32_t *>(page_table.get());
    cache.sequences = sequences;
    cache.table_width = table_width;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    rotary.sets = sets.get();
    rotary.choice_kind = LONGROPE_CHOICES_BY_LENGTH;

    // Appends new tokens and attends from them. Queries are rotated in place.
    const auto tensors = [&](int64_t batch, int64_t length) {
        longrope_decode_tensors found{};
        found.q = tensor(q.get(), LONGROPE_DTYPE_BF16, batch, length, query_heads);
        found.out = tensor(out.get(), LONGROPE_DTYPE_F32, batch, length, query_heads);
        return found;
    };
    const auto append = [&](const longrope_new_tokens &tokens, int64_t batch, int64_t length) {
        longrope_append_desc desc = LONGROPE_APPEND_DESC_INIT;
        desc.cached_keys = LONGROPE_CACHED_KEYS_UNROTATED;
        desc.tokens = tokens;
        desc.rotary = &rotary;
        desc.status = static_cast<uint32_t *>(status.get());
        longrope_append_tensors fresh{};
        fresh.q.input = tensor(q.get(), LONGROPE_DTYPE_BF16, batch, length, query_heads);
        fresh.k = tensor(k.get(), LONGROPE_DTYPE_BF16, batch, length, key_heads);
        fresh.v = tensor(v.get(), LONGROPE_DTYPE_BF16, batch, length, key_heads);
        check(longrope_append_run(context, &desc, &cache, &fresh, g.stream));
    };

    // The prompts, packed one after the other.
    double worst = 0;
    lengths.put(std::vector<int32_t>{static_cast<int32_t>(prompts[0]), static_cast<int32_t>(prompts[1])});
    for (int64_t sequence = 0, at = 0; sequence < sequences; at += prompts[sequence++]) {
        q.put(bf16(rows(sequence, 0, prompts[sequence], 0)), at * query_row);
        k.put(bf16(rows(sequence, 0, prompts[sequence], 1)), at * key_row);
        v.put(bf16(rows(sequence, 0, prompts[sequence], 2)), at * key_row);
    }
    longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
    prefill.tokens.sequence_kind = LONGROPE_SEQUENCES_PACKED;
    prefill.tokens.starts = starts.get();
    prefill.rotary = &rotary;
    prefill.status = static_cast<uint32_t *>(status.get());
    const longrope_decode_tensors prompt = tensors(1, prompt_tokens);
    size_t bytes = 0;
    check(longrope_prefill_workspace_size(&prefill, &cache, &prompt, &bytes));
    const Memory prefill_workspace(g, bytes);
    append(prefill.tokens, 1, prompt_tokens);
    check(longrope_prefill_run(context, &prefill, &cache, &prompt, prefill_workspace.get(), bytes, g.stream));
    const std::vector<float> prompt_out = out.take<float>(prompt_tokens * query_row);
    for (int64_t sequence = 0, at = 0; sequence < sequences; at += prompts[sequence++]) {
        const std::vector<float> exact = on_cpu(sets, sequence, 0, prompts[sequence]);
        worst = std::max(worst, difference(&prompt_out[at * query_row], exact.data(), exact.size()));
    }

    // One step, captured once: the graph reads lengths and pages when it is replayed.
    longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
    decode.rotary = &rotary;
    decode.status = static_cast<uint32_t *>(status.get());
    const longrope_decode_tensors step = tensors(sequences, 1);
    check(longrope_decode_workspace_size(&decode, &cache, &step, &bytes));
    const Memory workspace(g, bytes);
    void *graph = nullptr, *exec = nullptr;
    check_driver(graphs.begin(g.stream, 2 /* relaxed */), "cuStreamBeginCapture");
    append({}, sequences, 1);
    check(longrope_decode_run(context, &decode, &cache, &step, workspace.get(), bytes, g.stream));
    check_driver(graphs.end(g.stream, &graph), "cuStreamEndCapture");
    check_driver(graphs.instantiate(&exec, graph, 0), "cuGraphInstantiate");
    for (int64_t i = 0; i < steps; ++i) {
        std::vector<int32_t> now;
        for (int64_t sequence = 0; sequence < sequences; ++sequence) {
            const int64_t token = prompts[sequence] + i;
            now.push_back(static_cast<int32_t>(token + 1));
            q.put(bf16(rows(sequence, token, 1, 0)), sequence * query_row);
            k.put(bf16(rows(sequence, token, 1, 1)), sequence * key_row);
            v.put(bf16(rows(sequence, token, 1, 2)), sequence * key_row);
        }
        lengths.put(now);
        check_driver(graphs.launch(exec, g.stream), "cuGraphLaunch");
        const std::vector<float> found = out.take<float>(sequences * query_row);
        for (int64_t sequence = 0; sequence < sequences; ++sequence) {
            const std::vector<float> exact = on_cpu(sets, sequence, now[sequence] - 1, now[sequence]);
            worst = std::max(worst, difference(&found[sequence * query_row], exact.data(), exact.size()));
        }
    }
    graphs.destroy_exec(exec);
    graphs.destroy(graph);
    if (status.take<uint32_t>(1)[0] != 0) throw std::runtime_error("a kernel found a bad length, page or start");
    return worst;
}

}  // namespace

int main() try {
    const Sets sets = factor_sets();
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
        const int64_t length = prompts[sequence] + steps;
        const std::vector<float> last = on_cpu(sets, sequence, length - 1, length);
        std::printf("sequence %d, token %d:", static_cast<int>(sequence), static_cast<int>(length - 1));
        for (int64_t i = 0; i < 4; ++i) std::printf(" %.9g", static_cast<double>(last[i]));
        std::printf("\n");
    }

    gpu g;
    const int has_gpu = gpu_open(&g);
    longrope_context *opened = nullptr;
    const longrope_status status = longrope_context_create(0, &opened);
    const Context context(opened);
    if (status != LONGROPE_STATUS_OK) {
        std::printf("gpu: %s (status %d)\n", longrope_last_error_message(), static_cast<int>(status));
    } else if (has_gpu) {
        std::printf("gpu: largest difference from the CPU %.3g\n", on_gpu(context.get(), g, sets));
    } else {
        std::printf("gpu: kernels loaded, but no CUDA context to run them in\n");
    }
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "longrope: %s\n", error.what());
    return 1;
}
