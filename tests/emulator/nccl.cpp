// A stand-in for libnccl.so.2 on the one for the driver: sums and broadcasts in a stream's order, between threads of
// a process and between processes, by way of files in a folder. Communicators do not block, whatever is asked for,
// and what goes on after a call has returned goes on as late as the library's manual allows.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include "driver.h"
#include "numbers.h"

using namespace emulator;

namespace {

// By the numbers of nccl.h.
enum Status : int {
    SUCCESS = 0,
    UNHANDLED_CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INTERNAL_ERROR = 3,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
    IN_PROGRESS = 7,
};
enum Type : int { INT8 = 0, UINT8 = 1, F16 = 6, F32 = 7, BF16 = 9 };
constexpr int SUM = 0;

struct UniqueId {
    char text[128];
};
struct Config {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
};

struct Settings {
    static u64 number(const char *name, u64 otherwise) {
        const char *text = getenv(name);
        return text == nullptr || *text == 0 ? otherwise : strtoull(text, nullptr, 0);
    }
    u64 version = number("VAECF_EMULATOR_NCCL_VERSION", 22703);
    u64 init_error = number("VAECF_EMULATOR_NCCL_INIT_ERROR", 0);
    u64 missing = number("VAECF_EMULATOR_NCCL_MISSING", ~0ull);
    u64 stuck_after = number("VAECF_EMULATOR_NCCL_STUCK_AFTER", ~0ull);
    u64 remote_after = number("VAECF_EMULATOR_NCCL_REMOTE_AFTER", ~0ull);
};

std::mutex lock; // of what follows
std::string last_error;
u64 ids = 0;

Status wrong(Status status, const std::string &why) {
    const std::lock_guard<std::mutex> guard(lock);
    last_error = why;
    return status;
}

// The folder of what members tell each other.
std::string folder() {
    for (const char *name : {"VAECF_EMULATOR_NCCL_FOLDER", "TMPDIR"}) {
        const char *value = getenv(name);
        if (value != nullptr && *value != 0) return value;
    }
    return "/tmp";
}

bool exists(const std::string &path) {
    struct stat found;
    return stat(path.c_str(), &found) == 0;
}

u64 bytes_of(int type) { return type == F32 ? 4 : type == F16 || type == BF16 ? 2 : 1; }

// A member's place in a group. Work in queues keeps it alive.
struct Member {
    u32 made_here = 0x6e63636c;
    std::string path; // of the group's files, without their endings
    int rank, world;
    Settings settings;
    std::atomic<bool> joined{false}, aborted{false}, remote{false};
    u64 done = 0;                 // collectives that the device has begun
    std::function<int()> delayed; // a call that has returned and is yet to be carried out
    int asked = 0;                // how often it was asked since
    std::shared_ptr<int> recorded = std::make_shared<int>(); // as often as graphs hold its work

    std::string file(const std::string &what, int of) const { return path + "." + what + "." + std::to_string(of); }
    std::string file(u64 number, int of) const { return file(std::to_string(number), of); }

    // What this member brings, whole or not at all.
    bool tell(const std::string &name, const void *data, u64 bytes) const {
        const std::string draft = name + ".draft";
        std::ofstream out(draft, std::ios::binary);
        out.write(static_cast<const char *>(data), std::streamsize(bytes));
        out.close();
        return out.good() && rename(draft.c_str(), name.c_str()) == 0;
    }
};

struct Comm {
    std::shared_ptr<Member> member;
};

// A collective on the device: what it does with its operands once all members have come to it.
struct Collective {
    const void *from;
    void *to;
    u64 count;
    int type;
    int root; // -1: a sum
    const char *name;

    u64 bytes() const { return count * bytes_of(type); }
    bool writes(int rank) const { return rank != root || from != to; }
    // The same for all members.
    std::string head() const {
        return std::string(name) + " " + std::to_string(count) + " " + std::to_string(type) + " " +
               std::to_string(root) + "\n";
    }
};

// What is under way of a collective that has come to the front of its queue.
struct Turn {
    u64 number = 0;
    bool begun = false;
    u32 asked = 0; // since it came to the front, and since it has begun
    std::string broken; // why it cannot be carried out
};

float sum_of(int type, float a, float b) {
    return type == F16 ? widen_f16(narrow_f16(a + b)) : type == BF16 ? widen_bf16(narrow_bf16(a + b)) : a + b;
}

float number_at(int type, const char *from, u64 at) {
    if (type == F32) {
        float x;
        memcpy(&x, from + 4 * at, 4);
        return x;
    }
    u16 bits;
    memcpy(&bits, from + 2 * at, 2);
    return type == F16 ? widen_f16(bits) : widen_bf16(bits);
}

void put(int type, char *to, u64 at, float x) {
    if (type == F32) {
        memcpy(to + 4 * at, &x, 4);
    } else {
        const u16 bits = type == F16 ? narrow_f16(x) : narrow_bf16(x);
        memcpy(to + 2 * at, &bits, 2);
    }
}

std::string told_by(const std::string &name) {
    std::ifstream in(name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
}

// While it is under way nobody is to touch what it writes: whoever reads it gets numbers that are none, and whoever
// writes it is found out at the end.
void spoil(void *to, u64 bytes) {
    const u8 pattern[2] = {GARBAGE & 0xff, GARBAGE >> 8};
    for (u64 i = 0; i < bytes; ++i) static_cast<u8 *>(to)[i] = pattern[i % 2];
}
bool is_spoiled(const void *to, u64 bytes) {
    const u8 pattern[2] = {GARBAGE & 0xff, GARBAGE >> 8};
    for (u64 i = 0; i < bytes; ++i) {
        if (static_cast<const u8 *>(to)[i] != pattern[i % 2]) return false;
    }
    return true;
}

// Whether it can be carried out: asked again and again once it is at the front of its queue.
bool ready(Member &member, const Collective &what, Turn &turn) {
    if (member.aborted) return true;
    if (!turn.begun) {
        // Not always at once, so that what should have been waited for comes late at times.
        if (turn.asked++ < vaecf_emulator_random(4)) return false;
        turn = Turn();
        turn.begun = true;
        turn.number = member.done++;
        if (turn.number >= member.settings.remote_after) member.remote = true;
        for (const void *part : {what.from, static_cast<const void *>(what.to)}) {
            char where[256];
            if (!vaecf_emulator_holds(part, what.bytes(), where)) {
                turn.broken = std::string(what.name) + ": " + std::to_string(what.bytes()) + " bytes from " + where +
                              " on, which no allocation holds";
                return true;
            }
        }
        const std::string all = what.head() + std::string(static_cast<const char *>(what.from), what.bytes());
        // What was brought to the collective before the last was taken by all, or they had not come to the last.
        if (turn.number >= 2) unlink(member.file(turn.number - 2, member.rank).c_str());
        if (!member.tell(member.file(turn.number, member.rank), all.data(), all.size())) {
            turn.broken = "nothing can be written to " + member.path;
            return true;
        }
        if (what.writes(member.rank)) spoil(what.to, what.bytes());
    }
    if (!turn.broken.empty()) return true;
    if (turn.number >= member.settings.stuck_after || turn.number >= member.settings.remote_after) return false;
    // Never at once, so that work of other queues comes in between.
    if (++turn.asked < 3 + vaecf_emulator_random(5)) return false;
    for (int rank = 0; rank < member.world; ++rank) {
        if (!exists(member.file(turn.number, rank))) return false;
    }
    return true;
}

Fault carry_out(Member &member, const Collective &what, Turn &turn) {
    const bool begun = turn.begun;
    turn.begun = false; // a graph may bring it again
    turn.asked = 0;
    if (member.aborted || !begun) return {};
    if (!turn.broken.empty()) return {700, turn.broken};
    if (what.writes(member.rank) && !is_spoiled(what.to, what.bytes())) {
        return {719, std::string(what.name) + ": what it writes was written by somebody else while it was under way"};
    }
    char *to = static_cast<char *>(what.to);
    for (int rank = 0; rank < member.world; ++rank) {
        const std::string all = told_by(member.file(turn.number, rank));
        if (all.compare(0, what.head().size(), what.head()) != 0) {
            return {719, what.head() + "meets another collective of rank " + std::to_string(rank) + ": " +
                             all.substr(0, all.find('\n'))};
        }
        const char *data = all.data() + what.head().size();
        if (what.root >= 0) {
            if (rank == what.root) memcpy(to, data, what.bytes());
        } else if (rank == 0) {
            memcpy(to, data, what.bytes());
        } else {
            for (u64 i = 0; i < what.count; ++i) {
                put(what.type, to, i, sum_of(what.type, number_at(what.type, to, i), number_at(what.type, data, i)));
            }
        }
    }
    return {};
}

// A call of a communicator: those before it must have ended.
Status check(Comm *comm) {
    if (comm == nullptr || comm->member->made_here != Member().made_here) {
        return wrong(INVALID_ARGUMENT, "it is no communicator");
    }
    const Member &member = *comm->member;
    if (!member.joined || member.delayed) {
        return wrong(INVALID_ARGUMENT, "Attempt to use communicator before the previous operation returned ncclSuccess");
    }
    return member.remote ? REMOTE_ERROR : SUCCESS;
}

Status queue(Comm *comm, const Collective &what, void *stream) {
    if (const Status status = check(comm)) return status;
    if (what.from == nullptr || what.to == nullptr) return wrong(INVALID_ARGUMENT, "an operand is null");
    const std::shared_ptr<Member> member = comm->member;
    const auto turn = std::make_shared<Turn>();
    member->asked = 0;
    member->delayed = [member, what, turn, stream] {
        const std::shared_ptr<int> recorded = vaecf_emulator_records(stream) ? member->recorded : nullptr;
        return vaecf_emulator_enqueue_when(
            stream, [member, what, turn] { return ready(*member, what, *turn); },
            [member, what, turn, recorded] { return carry_out(*member, what, *turn); });
    };
    return IN_PROGRESS;
}

// As the library does, it waits for graphs that use the communicator; not for ever, but until it is certain that
// nobody ends them.
void wait_for_graphs(const Member &member, const char *call) {
    for (int turn = 0; member.recorded.use_count() > 1; ++turn) {
        vaecf_emulator_progress();
        usleep(100);
        if (turn < 30000) continue;
        fprintf(stderr, "emulator: %s waits for a graph that uses the communicator, and nobody destroys it\n", call);
        abort();
    }
}

} // namespace

#define NCCL extern "C" __attribute__((visibility("default")))

NCCL int ncclGetVersion(int *version) {
    if (version == nullptr) return INVALID_ARGUMENT;
    *version = int(Settings().version);
    return SUCCESS;
}

NCCL const char *ncclGetErrorString(int code) {
    switch (code) {
    case SUCCESS: return "no error";
    case UNHANDLED_CUDA_ERROR: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case INTERNAL_ERROR: return "internal error - please report this issue to the NCCL developers";
    case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
    default: return "unknown result code";
    }
}

NCCL const char *ncclGetLastError(Comm *) {
    static thread_local std::string told;
    const std::lock_guard<std::mutex> guard(lock);
    told = last_error;
    return told.c_str();
}

NCCL int ncclGetUniqueId(UniqueId *id) {
    if (id == nullptr) return INVALID_ARGUMENT;
    std::random_device random;
    const std::lock_guard<std::mutex> guard(lock);
    memset(id, 0, sizeof *id);
    snprintf(id->text, sizeof id->text, "vaecf-nccl-%d-%llu-%08x", int(getpid()), ++ids, random());
    return SUCCESS;
}

NCCL int ncclCommInitRankConfig(Comm **comm, int world, UniqueId id, int rank, Config *config) {
    if (comm == nullptr) return wrong(INVALID_ARGUMENT, "there is no room for a communicator");
    *comm = nullptr;
    if (config == nullptr || config->magic != 0xcafebeef || config->size < sizeof(Config)) {
        return wrong(INVALID_ARGUMENT, "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
    }
    if (config->blocking != 0) return wrong(INVALID_USAGE, "this stand-in does not block");
    if (world < 1 || rank < 0 || rank >= world) return wrong(INVALID_ARGUMENT, "a rank that is none of the group's");
    if (strncmp(id.text, "vaecf-nccl-", 11) != 0) return wrong(INVALID_ARGUMENT, "an id that ncclGetUniqueId did not give");
    if (vaecf_emulator_context() != 0) return wrong(UNHANDLED_CUDA_ERROR, "the thread has no context");
    auto member = std::make_shared<Member>();
    member->path = folder() + "/" + id.text;
    member->rank = rank;
    member->world = world;
    if (member->settings.missing != u64(rank) && !member->tell(member->file("init", rank), "", 0)) {
        return wrong(SYSTEM_ERROR, "nothing can be written to " + member->path);
    }
    *comm = new Comm{member};
    return IN_PROGRESS;
}

NCCL int ncclCommGetAsyncError(Comm *comm, int *state) {
    if (comm == nullptr || state == nullptr) return INVALID_ARGUMENT;
    Member &member = *comm->member;
    *state = SUCCESS;
    if (member.remote) {
        *state = wrong(REMOTE_ERROR, "socketProgress: Connection closed by remote peer");
    } else if (!member.joined) {
        if (member.settings.init_error != 0) {
            *state = wrong(Status(member.settings.init_error), "an error while joining, as it was asked for");
            return SUCCESS;
        }
        for (int rank = 0; rank < member.world; ++rank) {
            if (!exists(member.file("init", rank))) *state = IN_PROGRESS;
        }
        member.joined = *state == SUCCESS;
    } else if (member.delayed) {
        *state = IN_PROGRESS;
        // Only now is the work in the queue.
        if (++member.asked == 2) {
            const auto carried_out = std::move(member.delayed);
            member.delayed = nullptr;
            *state = carried_out() == 0 ? SUCCESS : wrong(UNHANDLED_CUDA_ERROR, "the stream takes no work");
        }
    }
    return SUCCESS;
}

NCCL int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, Comm *comm, void *stream) {
    if (operation != SUM || (type != F32 && type != F16 && type != BF16)) {
        return wrong(INVALID_ARGUMENT, "this stand-in adds up numbers only");
    }
    return queue(comm, {from, to, count, type, -1, "ncclAllReduce"}, stream);
}

NCCL int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, Comm *comm, void *stream) {
    if (comm != nullptr && (root < 0 || root >= comm->member->world)) {
        return wrong(INVALID_ARGUMENT, "a root that is none of the group's");
    }
    return queue(comm, {from, to, count, type, root, "ncclBroadcast"}, stream);
}

NCCL int ncclCommFinalize(Comm *comm) { return check(comm); }

NCCL int ncclCommDestroy(Comm *comm) {
    if (comm == nullptr) return SUCCESS;
    const Member &member = *comm->member;
    wait_for_graphs(member, "ncclCommDestroy");
    member.tell(member.file("left", member.rank), "", 0);
    // The others may still have to take what this member brought last. The one that leaves last clears up.
    bool last = true;
    for (int rank = 0; rank < member.world; ++rank) last = last && exists(member.file("left", rank));
    for (int rank = 0; last && rank < member.world; ++rank) {
        for (const char *what : {"init", "left"}) unlink(member.file(what, rank).c_str());
        for (u64 back = 1; back <= 2 && back <= member.done; ++back) {
            unlink(member.file(member.done - back, rank).c_str());
        }
    }
    delete comm;
    return SUCCESS;
}

NCCL int ncclCommAbort(Comm *comm) {
    if (comm == nullptr) return SUCCESS;
    comm->member->aborted = true;
    comm->member->delayed = nullptr;
    wait_for_graphs(*comm->member, "ncclCommAbort");
    delete comm;
    return SUCCESS;
}
