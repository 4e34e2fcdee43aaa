// A stand-in for libcuda.so.1: the functions that the host code calls, with the names, types and results of
// cuda.h. Devices are the emulator's. What it does differently from a driver is said in README.md.
#include "driver.h"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "streams.h"
#include "watch.h"

using namespace emulator;

namespace {

struct Settings {
    u64 seed;
    u64 memory;
    int major, minor;
    int version;
    int devices;
    u64 lost_after; // launches; 0 for never
    int init_error;
    int shared; // bytes that a block may ask for; 0 for what the capability has
    int processors;

    static Settings read() {
        const auto number = [](const char *name, u64 otherwise) {
            const char *text = getenv(name);
            return text == nullptr || *text == 0 ? otherwise : strtoull(text, nullptr, 0);
        };
        Settings read;
        read.seed = number("VAECF_EMULATOR_SEED", 1);
        read.memory = number("VAECF_EMULATOR_MEMORY", 16ull << 30);
        read.version = int(number("VAECF_EMULATOR_DRIVER", 13000));
        read.devices = int(number("VAECF_EMULATOR_DEVICES", 1));
        read.lost_after = number("VAECF_EMULATOR_LOST_AFTER", 0);
        read.init_error = int(number("VAECF_EMULATOR_INIT_ERROR", 0));
        read.shared = int(number("VAECF_EMULATOR_SHARED", 0));
        read.processors = int(number("VAECF_EMULATOR_PROCESSORS", 132));
        read.major = 9;
        read.minor = 0;
        if (const char *capability = getenv("VAECF_EMULATOR_CAPABILITY")) {
            sscanf(capability, "%d.%d", &read.major, &read.minor);
        }
        watch.on = number("VAECF_EMULATOR_WATCH", 1) != 0;
        return read;
    }

    int capability() const { return 10 * major + minor; }
    // Of NVIDIA's table of compute capabilities.
    int shared_per_processor() const {
        switch (capability()) {
        case 75: return 64 << 10;
        case 80:
        case 87: return 164 << 10;
        case 86:
        case 89:
        case 120: return 100 << 10;
        default: return 228 << 10;
        }
    }
    int shared_opt_in() const {
        if (shared != 0) return shared;
        return capability() == 75 ? 64 << 10 : shared_per_processor() - 1024;
    }
    int threads_per_processor() const {
        return capability() == 75                                                ? 1024
               : capability() == 86 || capability() == 89 || capability() == 120 ? 1536
                                                                                 : 2048;
    }
};

constexpr u32 SHARED_WITHOUT_ASKING = 48 << 10;
constexpr u64 ALLOCATION_UNIT = 512;

struct Module;
struct Function {
    Context *context;
    const KernelEntry *kernel;
    u32 dynamic_limit = SHARED_WITHOUT_ASKING;
};
struct Module {
    Context *context;
    bool lists_kernels = false;
    std::vector<std::string> kernels; // those of the image, where it lists them
    std::map<std::string, std::unique_ptr<Function>> functions;
};
struct UserGraph {
    Graph graph;
};
struct ExecutableGraph {
    Context *context;
    Graph graph;
};
struct HostRange {
    u64 bytes;
    void *allocated; // null where the user's own memory was registered
};

// All of the driver. One lock holds it, and who waits for the device does its work under that lock.
struct Driver {
    std::recursive_mutex lock;
    bool initialized = false;
    Settings settings{};
    std::vector<std::unique_ptr<Context>> contexts; // one for each device
    std::vector<u64> used;                          // bytes of each device
    u64 launches = 0;
    std::unordered_map<void *, std::shared_ptr<Event>> events;
    std::unordered_map<void *, std::unique_ptr<Module>> modules;
    std::unordered_map<void *, Function *> functions;
    std::unordered_map<void *, std::unique_ptr<UserGraph>> graphs;
    std::unordered_map<void *, std::unique_ptr<ExecutableGraph>> executables;
    std::map<u64, HostRange> host; // pinned memory
};

// Never destroyed: other libraries may still call while the process ends.
Driver &driver = *new Driver;
thread_local Context *current = nullptr;

// A call under the lock. `result` says why it may not go on.
struct Call {
    std::lock_guard<std::recursive_mutex> guard{driver.lock};
    Result result = driver.initialized ? SUCCESS : NOT_INITIALIZED;
};

// A call that needs the thread's context.
struct ContextCall : Call {
    Context *context = current;
    ContextCall() {
        if (result != SUCCESS) return;
        result = context == nullptr ? INVALID_CONTEXT : context->references == 0 ? CONTEXT_IS_DESTROYED : context->lost;
    }
};

// And one that captures forbid.
struct UnsafeCall : ContextCall {
    UnsafeCall() {
        if (result == SUCCESS) result = streams.may_call_unsafe();
    }
};

// The stream that a handle means; null where there is none.
Stream *stream_of(Context *context, void *handle) {
    if (handle == nullptr || handle == reinterpret_cast<void *>(1)) return context->legacy;
    if (handle == reinterpret_cast<void *>(2)) return context->per_thread;
    Stream *stream = static_cast<Stream *>(handle);
    return streams.all.count(stream) != 0 && stream->context == context ? stream : nullptr;
}

template <class Map> typename Map::mapped_type *find(Map &map, void *handle) {
    const auto found = map.find(handle);
    return found == map.end() ? nullptr : &found->second;
}

bool holds(u64 address, u64 bytes) { return memory.find(address, bytes) != memory.allocations.end(); }

// Pinned memory that holds all of it.
bool pinned(const void *host, u64 bytes) {
    const u64 address = reinterpret_cast<u64>(host);
    auto found = driver.host.upper_bound(address);
    if (found == driver.host.begin()) return false;
    --found;
    return address - found->first <= found->second.bytes && bytes <= found->second.bytes - (address - found->first);
}

bool of_host(const void *address) {
    return address != nullptr && reinterpret_cast<u64>(address) - memory.start >= memory.span;
}

// As the context's last user leaves, all that it holds goes.
void close(Context *context) {
    std::vector<Stream *> gone;
    for (Stream *stream : streams.all) {
        if (stream->context == context) gone.push_back(stream);
    }
    for (Stream *stream : gone) streams.destroy(stream);
    const auto drop = [&](auto &map, auto context_of) {
        for (auto at = map.begin(); at != map.end();) {
            if (context_of(*at) == context) {
                at = map.erase(at);
            } else {
                ++at;
            }
        }
    };
    drop(driver.events, [](auto &entry) { return entry.second->context; });
    drop(driver.functions, [](auto &entry) { return entry.second->context; });
    drop(driver.modules, [](auto &entry) { return entry.second->context; });
    drop(driver.executables, [](auto &entry) { return entry.second->context; });
    std::vector<u64> addresses;
    for (const auto &[address, allocation] : memory.allocations) {
        if (allocation.device == context->device) addresses.push_back(address);
    }
    for (u64 address : addresses) memory.release(address);
    driver.used[size_t(context->device)] = 0;
    context->lost = SUCCESS;
    context->references = 0;
    context->legacy = context->per_thread = nullptr;
}

Fault outside(const char *what, u64 address) {
    return {LOST_ILLEGAL_ADDRESS, std::string(what) + " of " + memory.describe(address)};
}

// A copy or a fill whose addresses are checked when it is asked for, and again when it is done.
Work checked(const char *what, u64 address, u64 bytes, std::function<void()> then) {
    return [=]() -> Fault {
        if (!holds(address, bytes)) return outside(what, address);
        then();
        return {};
    };
}

Result host_to_device(Stream *stream, u64 to, const void *from, u64 bytes) {
    if (bytes == 0) return SUCCESS;
    if (!holds(to, bytes) || !of_host(from)) return INVALID_VALUE;
    void *target = reinterpret_cast<void *>(to);
    if (pinned(from, bytes) || stream->capture) {
        return streams.enqueue(stream,
                               checked("a copy to the device", to, bytes, [=] { memcpy(target, from, bytes); }));
    }
    // The driver takes pageable memory at once, into memory of its own.
    const u8 *first = static_cast<const u8 *>(from);
    const auto staged = std::make_shared<std::vector<u8>>(first, first + bytes);
    return streams.enqueue(stream,
                           checked("a copy to the device", to, bytes, [=] { memcpy(target, staged->data(), bytes); }));
}

Result device_to_host(Stream *stream, void *to, u64 from, u64 bytes) {
    if (bytes == 0) return SUCCESS;
    if (!holds(from, bytes) || !of_host(to)) return INVALID_VALUE;
    const void *source = reinterpret_cast<const void *>(from);
    const bool late = pinned(to, bytes) || stream->capture;
    const Result result =
        streams.enqueue(stream, checked("a copy to the host", from, bytes, [=] { memcpy(to, source, bytes); }));
    if (result != SUCCESS || late) return result;
    // To pageable memory the driver comes back when all is there.
    return streams.finish(stream);
}

// A copy that comes back when it is done. It goes through the legacy stream.
template <class Copy> Result copy_now(Context *context, Copy copy) {
    const Result result = copy(context->legacy);
    return result != SUCCESS ? result : streams.finish(context->legacy);
}

} // namespace

#define CUDA extern "C" __attribute__((visibility("default"))) int

// ---- The library and its devices ----

CUDA cuInit(unsigned) {
    std::lock_guard<std::recursive_mutex> guard(driver.lock);
    if (driver.initialized) return SUCCESS;
    driver.settings = Settings::read();
    if (driver.settings.init_error != 0) return driver.settings.init_error;
    if (driver.settings.devices == 0) return NO_DEVICE;
    memory.open();
    streams.random = Random{driver.settings.seed * 2 + 1};
    // No call that waits holds the lock more than once.
    streams.rest = [] {
        driver.lock.unlock();
        usleep(50);
        driver.lock.lock();
    };
    driver.launches = 0;
    driver.contexts.clear();
    for (int i = 0; i < driver.settings.devices; ++i) {
        driver.contexts.push_back(std::make_unique<Context>());
        driver.contexts.back()->device = i;
    }
    driver.used.assign(size_t(driver.settings.devices), 0);
    driver.initialized = true;
    return SUCCESS;
}

CUDA cuDriverGetVersion(int *version) {
    std::lock_guard<std::recursive_mutex> guard(driver.lock);
    if (version == nullptr) return INVALID_VALUE;
    // It may be asked before cuInit.
    *version = driver.initialized ? driver.settings.version : Settings::read().version;
    return SUCCESS;
}

CUDA cuDeviceGetCount(int *count) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    *count = driver.settings.devices;
    return SUCCESS;
}

CUDA cuDeviceGet(int *device, int ordinal) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    if (ordinal < 0 || ordinal >= driver.settings.devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

namespace {

// A call about a device.
struct DeviceCall : Call {
    explicit DeviceCall(int device) {
        if (result == SUCCESS && (device < 0 || device >= driver.settings.devices)) result = INVALID_DEVICE;
    }
};

} // namespace

CUDA cuDeviceGetName(char *name, int length, int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    if (length <= 0) return INVALID_VALUE;
    snprintf(name, size_t(length), "Emulated GPU %d.%d", driver.settings.major, driver.settings.minor);
    return SUCCESS;
}

CUDA cuDeviceGetUuid_v2(char *uuid, int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    memcpy(uuid, "vaecf emulator 0", 16);
    uuid[15] = char('0' + device);
    return SUCCESS;
}

CUDA cuDeviceGetUuid(char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

CUDA cuDeviceTotalMem_v2(size_t *bytes, int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    *bytes = driver.settings.memory;
    return SUCCESS;
}

CUDA cuDeviceGetAttribute(int *value, int attribute, int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    if (attribute < 1 || attribute > 147) return INVALID_VALUE;
    const Settings &settings = driver.settings;
    switch (attribute) {
    case 1: *value = 1024; break; // MAX_THREADS_PER_BLOCK
    case 2:
    case 3: *value = 1024; break;       // MAX_BLOCK_DIM_X, Y
    case 4: *value = 64; break;         // MAX_BLOCK_DIM_Z
    case 5: *value = 0x7fffffff; break; // MAX_GRID_DIM_X
    case 6:
    case 7: *value = 65535; break;                 // MAX_GRID_DIM_Y, Z
    case 8: *value = SHARED_WITHOUT_ASKING; break; // MAX_SHARED_MEMORY_PER_BLOCK
    case 9: *value = 65536; break;                 // TOTAL_CONSTANT_MEMORY
    case 10: *value = 32; break;                   // WARP_SIZE
    case 12:
    case 82: *value = 65536; break;   // MAX_REGISTERS_PER_BLOCK, _MULTIPROCESSOR
    case 13: *value = 1980000; break; // CLOCK_RATE, kHz
    case 15:
    case 31:
    case 41: *value = 1; break;   // GPU_OVERLAP, CONCURRENT_KERNELS, UNIFIED_ADDRESSING
    case 16: *value = settings.processors; break; // MULTIPROCESSOR_COUNT
    case 19:
    case 78:
    case 99: *value = 1; break;                                // CAN_MAP_HOST_MEMORY, STREAM_PRIORITIES, HOST_REGISTER
    case 33: *value = 1 + device; break;                       // PCI_BUS_ID
    case 36: *value = 2619000; break;                          // MEMORY_CLOCK_RATE, kHz
    case 37: *value = 5120; break;                             // GLOBAL_MEMORY_BUS_WIDTH, bits
    case 38: *value = 50 << 20; break;                         // L2_CACHE_SIZE
    case 39: *value = settings.threads_per_processor(); break; // MAX_THREADS_PER_MULTIPROCESSOR
    case 40: *value = 3; break;                                // ASYNC_ENGINE_COUNT
    case 75: *value = settings.major; break;                   // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = settings.minor; break;                   // COMPUTE_CAPABILITY_MINOR
    case 81: *value = settings.shared_per_processor(); break;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 97: *value = settings.shared_opt_in(); break;         // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 106: *value = 32; break;                              // MAX_BLOCKS_PER_MULTIPROCESSOR
    case 111: *value = 1024; break;                            // RESERVED_SHARED_MEMORY_PER_BLOCK
    default: *value = 0; break;
    }
    return SUCCESS;
}

// ---- Contexts ----

CUDA cuDevicePrimaryCtxRetain(Context **context, int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    Context *primary = driver.contexts[size_t(device)].get();
    if (primary->references++ == 0) {
        primary->legacy = streams.create(primary, true, false);
        primary->per_thread = streams.create(primary, true, false);
    }
    *context = primary;
    return SUCCESS;
}

CUDA cuDevicePrimaryCtxRelease_v2(int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    Context *primary = driver.contexts[size_t(device)].get();
    if (primary->references == 0) return INVALID_CONTEXT;
    if (primary->references == 1) {
        streams.finish_all(primary);
        close(primary);
    } else {
        --primary->references;
    }
    return SUCCESS;
}

CUDA cuDevicePrimaryCtxReset_v2(int device) {
    DeviceCall call(device);
    if (call.result != SUCCESS) return call.result;
    Context *primary = driver.contexts[size_t(device)].get();
    if (primary->references != 0) close(primary);
    return SUCCESS;
}

CUDA cuCtxSetCurrent(Context *context) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    if (context != nullptr) {
        const auto known = std::find_if(driver.contexts.begin(), driver.contexts.end(),
                                        [&](const auto &each) { return each.get() == context; });
        if (known == driver.contexts.end()) return INVALID_CONTEXT;
    }
    current = context;
    return SUCCESS;
}

CUDA cuCtxGetCurrent(Context **context) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    *context = current;
    return SUCCESS;
}

CUDA cuCtxGetDevice(int *device) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    *device = call.context->device;
    return SUCCESS;
}

CUDA cuCtxSynchronize() {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    for (Stream *stream : streams.all) {
        if (stream->context == call.context && stream->capture) {
            Streams::invalidate(stream);
            call.result = CAPTURE_UNSUPPORTED;
        }
    }
    return call.result != SUCCESS ? call.result : streams.finish_all(call.context);
}

// ---- Memory ----

CUDA cuMemGetInfo_v2(size_t *free, size_t *total) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    *total = driver.settings.memory;
    *free = driver.settings.memory - driver.used[size_t(call.context->device)];
    return SUCCESS;
}

namespace {

u64 rounded(u64 bytes) { return (bytes + ALLOCATION_UNIT - 1) / ALLOCATION_UNIT * ALLOCATION_UNIT; }

} // namespace

CUDA cuMemAlloc_v2(u64 *address, size_t bytes) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    if (bytes == 0 || address == nullptr) return INVALID_VALUE;
    u64 &used = driver.used[size_t(call.context->device)];
    if (bytes > driver.settings.memory || rounded(bytes) > driver.settings.memory - used) return OUT_OF_MEMORY;
    *address = memory.allocate(bytes, call.context->device);
    if (*address == 0) return OUT_OF_MEMORY;
    used += rounded(bytes);
    return SUCCESS;
}

CUDA cuMemFree_v2(u64 address) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    if (address == 0) return SUCCESS;
    const auto found = memory.allocations.find(address);
    if (found == memory.allocations.end() || found->second.device != call.context->device) return INVALID_VALUE;
    if (const Result result = streams.finish_all(call.context)) return result;
    driver.used[size_t(call.context->device)] -= rounded(found->second.bytes);
    memory.release(address);
    return SUCCESS;
}

CUDA cuMemHostAlloc(void **host, size_t bytes, unsigned) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    if (bytes == 0 || host == nullptr) return INVALID_VALUE;
    *host = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*host == nullptr) return OUT_OF_MEMORY;
    std::fill_n(static_cast<u16 *>(*host), (bytes + 1) / 2, GARBAGE);
    driver.host[reinterpret_cast<u64>(*host)] = {bytes, *host};
    return SUCCESS;
}

CUDA cuMemFreeHost(void *host) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    const auto found = driver.host.find(reinterpret_cast<u64>(host));
    if (found == driver.host.end() || found->second.allocated == nullptr) return INVALID_VALUE;
    const Result result = streams.finish_all(call.context);
    free(found->second.allocated);
    driver.host.erase(found);
    return result;
}

CUDA cuMemHostRegister_v2(void *host, size_t bytes, unsigned) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    if (host == nullptr || bytes == 0) return INVALID_VALUE;
    const u64 address = reinterpret_cast<u64>(host);
    for (const auto &[start, range] : driver.host) {
        if (start < address + bytes && address < start + range.bytes) return HOST_MEMORY_ALREADY_REGISTERED;
    }
    driver.host[address] = {bytes, nullptr};
    return SUCCESS;
}

CUDA cuMemHostUnregister(void *host) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    const auto found = driver.host.find(reinterpret_cast<u64>(host));
    if (found == driver.host.end() || found->second.allocated != nullptr) return HOST_MEMORY_NOT_REGISTERED;
    const Result result = streams.finish_all(call.context);
    driver.host.erase(found);
    return result;
}

namespace {

// A call that puts work into a stream.
struct StreamCall : ContextCall {
    Stream *stream = nullptr;
    explicit StreamCall(void *handle) {
        if (result != SUCCESS) return;
        stream = stream_of(context, handle);
        if (stream == nullptr) result = INVALID_HANDLE;
    }
};

} // namespace

CUDA cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *stream) {
    StreamCall call(stream);
    return call.result != SUCCESS ? call.result : host_to_device(call.stream, to, from, bytes);
}

CUDA cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *stream) {
    StreamCall call(stream);
    return call.result != SUCCESS ? call.result : device_to_host(call.stream, to, from, bytes);
}

CUDA cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void *stream) {
    StreamCall call(stream);
    if (call.result != SUCCESS || bytes == 0) return call.result;
    if (!holds(to, bytes) || !holds(from, bytes)) return INVALID_VALUE;
    return streams.enqueue(call.stream, checked("a copy within the device", to, bytes, [=] {
                               memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
                           }));
}

CUDA cuMemcpyHtoD_v2(u64 to, const void *from, size_t bytes) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    return copy_now(call.context, [=](Stream *stream) { return host_to_device(stream, to, from, bytes); });
}

CUDA cuMemcpyDtoH_v2(void *to, u64 from, size_t bytes) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    return copy_now(call.context, [=](Stream *stream) { return device_to_host(stream, to, from, bytes); });
}

CUDA cuMemsetD8Async(u64 to, unsigned char value, size_t count, void *stream) {
    StreamCall call(stream);
    if (call.result != SUCCESS || count == 0) return call.result;
    if (!holds(to, count)) return INVALID_VALUE;
    return streams.enqueue(call.stream,
                           checked("a fill", to, count, [=] { memset(reinterpret_cast<void *>(to), value, count); }));
}

CUDA cuMemsetD32Async(u64 to, unsigned value, size_t count, void *stream) {
    StreamCall call(stream);
    if (call.result != SUCCESS || count == 0) return call.result;
    if (to % 4 != 0 || !holds(to, 4 * count)) return INVALID_VALUE;
    return streams.enqueue(
        call.stream, checked("a fill", to, 4 * count, [=] { std::fill_n(reinterpret_cast<u32 *>(to), count, value); }));
}

// ---- Streams and events ----

CUDA cuStreamCreateWithPriority(Stream **stream, unsigned flags, int) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    if (flags > 1) return INVALID_VALUE;
    *stream = streams.create(call.context, flags == 0, true);
    return SUCCESS;
}

CUDA cuStreamCreate(Stream **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

CUDA cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

CUDA cuStreamDestroy_v2(void *handle) {
    StreamCall call(handle);
    if (call.result != SUCCESS) return call.result;
    if (!call.stream->made_by_user) return INVALID_HANDLE;
    if (call.stream->capture) {
        Streams::invalidate(call.stream);
        return CAPTURE_UNSUPPORTED;
    }
    // Its work is still done; here at once.
    const Result result = streams.finish(call.stream);
    streams.destroy(call.stream);
    return result;
}

namespace {

// A call that asks how far a stream is, which one that is captured cannot say.
Result ask(StreamCall &call) {
    if (call.result != SUCCESS) return call.result;
    if (call.stream->capture) {
        Streams::invalidate(call.stream);
        return CAPTURE_UNSUPPORTED;
    }
    if (const Result result = streams.may_call_unsafe()) return result;
    return SUCCESS;
}

} // namespace

CUDA cuStreamSynchronize(void *stream) {
    StreamCall call(stream);
    if (const Result result = ask(call)) return result;
    return streams.finish(call.stream);
}

CUDA cuStreamQuery(void *stream) {
    StreamCall call(stream);
    if (const Result result = ask(call)) return result;
    streams.run_some(streams.random.below(4));
    if (call.context->lost != SUCCESS) return call.context->lost;
    return call.stream->queue.empty() ? SUCCESS : NOT_READY;
}

CUDA cuEventCreate(Event **event, unsigned flags) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto made = std::make_shared<Event>();
    made->context = call.context;
    made->timed = (flags & 2) == 0;
    *event = made.get();
    driver.events[*event] = made;
    return SUCCESS;
}

CUDA cuEventDestroy_v2(void *event) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    return driver.events.erase(event) == 0 ? INVALID_HANDLE : SUCCESS;
}

CUDA cuEventRecord(void *event, void *stream) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.events, event);
    if (found == nullptr || (*found)->context != call.context) return INVALID_HANDLE;
    return streams.record(call.stream, *found);
}

CUDA cuStreamWaitEvent(void *stream, void *event, unsigned) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.events, event);
    return found == nullptr ? INVALID_HANDLE : streams.wait(call.stream, *found);
}

CUDA cuEventSynchronize(void *event) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.events, event);
    if (found == nullptr) return INVALID_HANDLE;
    const std::shared_ptr<Event> waited = *found;
    if (waited->capture) return CAPTURED_EVENT;
    const u64 generation = waited->recorded;
    return streams.run_until(call.context, [&] { return waited->done >= generation; });
}

CUDA cuEventQuery(void *event) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.events, event);
    if (found == nullptr) return INVALID_HANDLE;
    const std::shared_ptr<Event> asked = *found;
    if (asked->capture) return CAPTURED_EVENT;
    streams.run_some(streams.random.below(4));
    if (call.context->lost != SUCCESS) return call.context->lost;
    return asked->done >= asked->recorded ? SUCCESS : NOT_READY;
}

CUDA cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto *first = find(driver.events, from);
    auto *second = find(driver.events, to);
    if (first == nullptr || second == nullptr) return INVALID_HANDLE;
    for (Event *event : {first->get(), second->get()}) {
        if (!event->timed || event->recorded == 0) return INVALID_HANDLE;
        if (event->done < event->recorded) return NOT_READY;
    }
    *milliseconds = float(((*second)->seconds - (*first)->seconds) * 1e3);
    return SUCCESS;
}

CUDA cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

// ---- Capture and graphs ----

CUDA cuStreamBeginCapture_v2(void *stream, int mode) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    return streams.begin_capture(call.stream, CaptureMode(mode));
}

CUDA cuStreamEndCapture(void *stream, UserGraph **graph) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    auto made = std::make_unique<UserGraph>();
    if (graph != nullptr) *graph = nullptr;
    if (const Result result = streams.end_capture(call.stream, &made->graph)) return result;
    if (graph == nullptr) return INVALID_VALUE;
    *graph = made.get();
    driver.graphs[*graph] = std::move(made);
    return SUCCESS;
}

CUDA cuStreamIsCapturing(void *stream, int *status) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    *status = !call.stream->capture ? 0 : call.stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

CUDA cuThreadExchangeStreamCaptureMode(int *mode) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    if (mode == nullptr || *mode < 0 || *mode > 2) return INVALID_VALUE;
    const int old = int(thread_capture_mode);
    thread_capture_mode = CaptureMode(*mode);
    *mode = old;
    return SUCCESS;
}

CUDA cuGraphInstantiateWithFlags(ExecutableGraph **executable, void *graph, u64) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.graphs, graph);
    if (found == nullptr) return INVALID_HANDLE;
    auto made = std::make_unique<ExecutableGraph>(ExecutableGraph{call.context, (*found)->graph});
    *executable = made.get();
    driver.executables[*executable] = std::move(made);
    return SUCCESS;
}

CUDA cuGraphUpload(void *executable, void *stream) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    return find(driver.executables, executable) == nullptr ? INVALID_HANDLE : SUCCESS;
}

CUDA cuGraphLaunch(void *executable, void *stream) {
    StreamCall call(stream);
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.executables, executable);
    return found == nullptr ? INVALID_HANDLE : streams.launch_graph(call.stream, (*found)->graph);
}

CUDA cuGraphDestroy(void *graph) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    return driver.graphs.erase(graph) == 0 ? INVALID_HANDLE : SUCCESS;
}

CUDA cuGraphExecDestroy(void *executable) {
    Call call;
    if (call.result != SUCCESS) return call.result;
    return driver.executables.erase(executable) == 0 ? INVALID_HANDLE : SUCCESS;
}

// ---- Modules and launches ----

namespace {

// PTX, as text that ends in a zero: for this device or an older one.
Result read_text(const char *text, Module &module) {
    if (strncmp(text, "//", 2) != 0 && strncmp(text, ".version", 8) != 0) return INVALID_IMAGE;
    const char *target = strstr(text, ".target sm_");
    if (target == nullptr) return SUCCESS;
    if (atoi(target + 11) > driver.settings.capability()) return INVALID_PTX;
    module.lists_kernels = true;
    for (const char *entry = text; (entry = strstr(entry, ".entry ")) != nullptr;) {
        entry += 7;
        module.kernels.push_back(std::string(entry, strcspn(entry, " (\n")));
    }
    return SUCCESS;
}

// What a module's image must be: a cubin for this device, or PTX, or a fat binary, in which nothing is looked for.
Result read_image(const u8 *image, Module &module) {
    if (image == nullptr) return INVALID_VALUE;
    if (memcmp(image, ELFMAG, SELFMAG) != 0) {
        u32 magic;
        memcpy(&magic, image, 4);
        const bool fat = magic == 0xba55ed50 || magic == 0x466243b1;
        return fat ? SUCCESS : read_text(reinterpret_cast<const char *>(image), module);
    }
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_CUDA) return INVALID_IMAGE;
    // From ABI version 8 on the capability is one byte further up.
    const u32 capability = header.e_flags >> (header.e_ident[EI_ABIVERSION] >= 8 ? 8 : 0) & 0xff;
    const u32 device = u32(driver.settings.capability());
    if (capability != 0 && (capability / 10 != device / 10 || capability > device)) return NO_BINARY_FOR_GPU;
    if (header.e_shnum == 0 || header.e_shoff == 0) return SUCCESS;
    const auto section = [&](u32 i) {
        Elf64_Shdr found;
        memcpy(&found, image + header.e_shoff + i * header.e_shentsize, sizeof found);
        return found;
    };
    const Elf64_Shdr names = section(header.e_shstrndx);
    module.lists_kernels = true;
    for (u32 i = 0; i < header.e_shnum; ++i) {
        const char *name = reinterpret_cast<const char *>(image + names.sh_offset + section(i).sh_name);
        if (strncmp(name, ".text.", 6) == 0) module.kernels.push_back(name + 6);
    }
    return SUCCESS;
}

} // namespace

CUDA cuModuleLoadData(Module **module, const void *image) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    auto made = std::make_unique<Module>();
    made->context = call.context;
    if (const Result result = read_image(static_cast<const u8 *>(image), *made)) return result;
    *module = made.get();
    driver.modules[*module] = std::move(made);
    return SUCCESS;
}

CUDA cuModuleLoadDataEx(Module **module, const void *image, unsigned, int *, void **) {
    return cuModuleLoadData(module, image);
}

CUDA cuModuleUnload(void *module) {
    UnsafeCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.modules, module);
    if (found == nullptr) return INVALID_HANDLE;
    if (const Result result = streams.finish_all(call.context)) return result;
    for (const auto &[name, function] : (*found)->functions) driver.functions.erase(function.get());
    driver.modules.erase(module);
    return SUCCESS;
}

CUDA cuModuleGetFunction(Function **function, void *module, const char *name) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.modules, module);
    if (found == nullptr) return INVALID_HANDLE;
    Module &in = **found;
    if (in.lists_kernels && std::find(in.kernels.begin(), in.kernels.end(), name) == in.kernels.end()) return NOT_FOUND;
    std::unique_ptr<Function> &made = in.functions[name];
    if (!made) {
        const KernelEntry *kernel = KernelEntry::first;
        while (kernel != nullptr && strcmp(kernel->name, name) != 0) kernel = kernel->next;
        if (kernel == nullptr) {
            in.functions.erase(name);
            return NOT_FOUND;
        }
        made.reset(new Function{call.context, kernel});
        driver.functions[made.get()] = made.get();
    }
    *function = made.get();
    return SUCCESS;
}

CUDA cuFuncSetAttribute(void *function, int attribute, int value) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.functions, function);
    if (found == nullptr) return INVALID_HANDLE;
    if (attribute == 8) { // MAX_DYNAMIC_SHARED_SIZE_BYTES
        if (value < 0 || value > driver.settings.shared_opt_in()) return INVALID_VALUE;
        (*found)->dynamic_limit = u32(value);
        return SUCCESS;
    }
    return attribute == 9 ? SUCCESS : INVALID_VALUE; // PREFERRED_SHARED_MEMORY_CARVEOUT
}

CUDA cuFuncGetAttribute(int *value, int attribute, void *function) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.functions, function);
    if (found == nullptr) return INVALID_HANDLE;
    switch (attribute) {
    case 0: *value = int((*found)->kernel->threads); break; // MAX_THREADS_PER_BLOCK
    case 4: *value = 32; break;                             // NUM_REGS
    case 5:
    case 6: *value = driver.settings.capability(); break; // PTX_VERSION, BINARY_VERSION
    case 8: *value = int((*found)->dynamic_limit); break; // MAX_DYNAMIC_SHARED_SIZE_BYTES
    case 1:
    case 2:
    case 3:
    case 7:
    case 9: *value = 0; break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}

CUDA cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared_bytes) {
    ContextCall call;
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.functions, function);
    if (found == nullptr) return INVALID_HANDLE;
    if (threads <= 0) return INVALID_VALUE;
    *blocks = 0;
    if (u32(threads) > (*found)->kernel->threads || shared_bytes > (*found)->dynamic_limit) return SUCCESS;
    const int by_threads = driver.settings.threads_per_processor() / ((threads + 31) / 32 * 32);
    const int by_memory = driver.settings.shared_per_processor() / int(shared_bytes + 1024);
    *blocks = std::min({32, by_threads, by_memory});
    return SUCCESS;
}

namespace {

Result launch(StreamCall &call, void *function, Index grid, Index block, u32 shared_bytes, void **arguments) {
    if (call.result != SUCCESS) return call.result;
    auto *found = find(driver.functions, function);
    if (found == nullptr) return INVALID_HANDLE;
    const Function &of = **found;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0) return INVALID_VALUE;
    if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;
    if (block.x > 1024 || block.y > 1024 || block.z > 64) return INVALID_VALUE;
    if (u64(block.x) * block.y * block.z > std::min(1024u, of.kernel->threads)) return INVALID_VALUE;
    if (shared_bytes > of.dynamic_limit) return INVALID_VALUE;
    if (of.kernel->count > 0 && arguments == nullptr) return INVALID_VALUE;
    Launch launch{of.kernel, grid, block, shared_bytes, {}};
    for (u32 i = 0; i < of.kernel->count; ++i) {
        const u32 bytes = of.kernel->sizes[i];
        const size_t at = launch.arguments.size();
        launch.arguments.resize(at + (bytes + 15) / 16 * 16);
        memcpy(launch.arguments.data() + at, arguments[i], bytes);
    }
    if (launch.arguments.size() > 4096) return INVALID_VALUE;
    return streams.enqueue(call.stream, [launch = std::move(launch)]() -> Fault {
        if (driver.settings.lost_after != 0 && driver.launches++ >= driver.settings.lost_after) {
            return {LOST_ILLEGAL_ADDRESS, "the device is lost, as VAECF_EMULATOR_LOST_AFTER asks"};
        }
        const u64 seed = u64(streams.random.below(~0u)) << 32 | streams.random.below(~0u);
        return run(launch, seed);
    });
}

// As in cuda.h.
struct LaunchAttribute {
    int id;
    char padding[4];
    union {
        u32 cluster[3];
        char bytes[64];
    };
};
struct LaunchConfig {
    Index grid;
    Index block;
    u32 shared_bytes;
    void *stream;
    LaunchAttribute *attributes;
    u32 attribute_count;
};

} // namespace

CUDA cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                    unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
                    void **extra) {
    StreamCall call(stream);
    if (call.result == SUCCESS && extra != nullptr) return NOT_SUPPORTED;
    return launch(call, function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, arguments);
}

CUDA cuLaunchKernelEx(const LaunchConfig *config, void *function, void **arguments, void **extra) {
    StreamCall call(config->stream);
    if (call.result == SUCCESS && extra != nullptr) return NOT_SUPPORTED;
    for (u32 i = 0; i < config->attribute_count; ++i) {
        const LaunchAttribute &attribute = config->attributes[i];
        const bool cluster =
            attribute.id == 4 && attribute.cluster[0] * attribute.cluster[1] * attribute.cluster[2] > 1;
        if (cluster || attribute.id == 2) return NOT_SUPPORTED; // clusters and cooperative launches
    }
    return launch(call, function, config->grid, config->block, config->shared_bytes, arguments);
}

// ---- Errors and entry points ----

namespace {

struct Named {
    int code;
    const char *name, *text;
};
const Named RESULTS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Named *named(int code) {
    for (const Named &each : RESULTS) {
        if (each.code == code) return &each;
    }
    return nullptr;
}

} // namespace

CUDA cuGetErrorName(int code, const char **name) {
    const Named *found = named(code);
    *name = found == nullptr ? nullptr : found->name;
    return found == nullptr ? INVALID_VALUE : SUCCESS;
}

CUDA cuGetErrorString(int code, const char **text) {
    const Named *found = named(code);
    *text = found == nullptr ? nullptr : found->text;
    return found == nullptr ? INVALID_VALUE : SUCCESS;
}

CUDA cuGetProcAddress_v2(const char *symbol, void **function, int, u64, int *status) {
    Dl_info self;
    dladdr(reinterpret_cast<void *>(cuInit), &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = nullptr;
    // The name alone means its newest version.
    for (const char *version : {"_v2", ""}) {
        if (*function == nullptr) *function = dlsym(library, (std::string(symbol) + version).c_str());
    }
    dlclose(library);
    if (status != nullptr) *status = *function == nullptr ? 1 : 0; // SYMBOL_NOT_FOUND
    return *function == nullptr ? NOT_FOUND : SUCCESS;
}

// ---- For the other stand-ins and for tests ----

int vaecf_emulator_enqueue(void *stream, std::function<Fault()> work) {
    StreamCall call(stream);
    return call.result != SUCCESS ? call.result : streams.enqueue(call.stream, std::move(work));
}

int vaecf_emulator_enqueue_when(void *stream, std::function<bool()> so, std::function<Fault()> work) {
    StreamCall call(stream);
    return call.result != SUCCESS ? call.result : streams.enqueue(call.stream, std::move(work), std::move(so));
}

void vaecf_emulator_progress() {
    Call call;
    streams.run_some(4);
}

bool vaecf_emulator_records(void *stream) {
    StreamCall call(stream);
    return call.result == SUCCESS && call.stream->capture;
}

unsigned vaecf_emulator_random(unsigned n) { return streams.random.below(n); }

bool vaecf_emulator_holds(const void *start, u64 bytes, char *sentence) {
    Call call;
    const u64 address = reinterpret_cast<u64>(start);
    if (sentence != nullptr) snprintf(sentence, 256, "%s", memory.describe(address).c_str());
    return holds(address, bytes);
}

int vaecf_emulator_context() {
    ContextCall call;
    return call.result;
}

// Bytes of device memory that nobody has freed yet.
extern "C" __attribute__((visibility("default"))) u64 vaecf_emulator_live_bytes() {
    std::lock_guard<std::recursive_mutex> guard(driver.lock);
    u64 bytes = 0;
    for (const auto &[address, allocation] : memory.allocations) bytes += allocation.bytes;
    return bytes;
}

// The sentence of the latest fault; empty where there was none.
extern "C" __attribute__((visibility("default"))) const char *vaecf_emulator_last_fault() {
    return streams.last_fault.c_str();
}

// As if the process had just started: the next cuInit reads the environment anew. All handles become invalid.
extern "C" __attribute__((visibility("default"))) void vaecf_emulator_restart() {
    std::lock_guard<std::recursive_mutex> guard(driver.lock);
    for (const auto &context : driver.contexts) close(context.get());
    driver.graphs.clear();
    for (const auto &[address, range] : driver.host) free(range.allocated);
    driver.host.clear();
    streams.last_fault.clear();
    driver.initialized = false;
    current = nullptr;
}
