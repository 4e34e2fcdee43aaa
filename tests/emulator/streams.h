// Streams, events and graphs. Work is put into a stream's queue and done when somebody waits, by whoever waits,
// in a random order among the streams as far as events allow: what lacks a wait goes wrong under some seed.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "scheduler.h"

namespace emulator {

// The driver's results that this file and the next ones use, by the names and numbers of cuda.h.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LOST_ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    LOST_LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

using Work = std::function<Fault()>;
// Whether the next work of a queue may be done, where that depends on other threads or processes; empty where not.
using Condition = std::function<bool()>;

enum class CaptureMode : int { global = 0, thread_local_ = 1, relaxed = 2 };

struct Stream;

// Work and, by their places in `nodes`, what must come before each.
struct Graph {
    struct Node {
        Work work;
        Condition so;
        std::vector<u32> after;
    };
    std::vector<Node> nodes;
};

struct Capture {
    Stream *origin;
    CaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    Graph graph;
};

struct Context {
    int device = 0;
    u32 references = 0;
    Result lost = SUCCESS; // what every call returns from a fault on
    Stream *legacy = nullptr;
    Stream *per_thread = nullptr;
};

struct Event {
    Context *context;
    bool timed;
    u64 recorded = 0; // how often it was asked for
    u64 done = 0;     // the latest that has come to pass
    double seconds = 0;
    std::shared_ptr<Capture> capture; // where it was recorded last, if in a capture
    std::vector<u32> nodes;           // the capture's work that it stands for
};

struct Operation {
    u64 number = 0; // in the order of the calls
    Work work;
    Condition so;
    std::shared_ptr<Event> waits, records; // at most one of these and of work
    u64 generation = 0;
};

struct Stream {
    Context *context;
    bool blocking; // ordered with the legacy stream
    bool made_by_user;
    std::deque<Operation> queue;
    std::shared_ptr<Capture> capture;
    std::vector<u32> last; // the work that the next must come after, in the capture
};

// All live streams, and what random choices come from.
struct Streams {
    std::set<Stream *> all;
    Random random{1};
    u64 calls = 0;
    std::string last_fault;
    std::function<void()> rest; // lets other threads go on for a moment

    Stream *create(Context *context, bool blocking, bool made_by_user);
    void destroy(Stream *stream);

    // To the stream's queue, or to the graph where it is captured.
    Result enqueue(Stream *stream, Work work, Condition so = nullptr);
    Result record(Stream *stream, const std::shared_ptr<Event> &event);
    Result wait(Stream *stream, const std::shared_ptr<Event> &event);
    Result launch_graph(Stream *stream, const Graph &graph);

    // Does work until it is so; the context's fault where one comes to pass.
    Result run_until(Context *context, const std::function<bool()> &so);
    Result finish(Stream *stream);
    Result finish_all(Context *context);
    void run_some(u32 operations);

    Result begin_capture(Stream *stream, CaptureMode mode);
    Result end_capture(Stream *stream, Graph *graph);
    // Whether a call that a capture forbids may be made by this thread; the captures that forbid it end.
    Result may_call_unsafe();
    static void invalidate(Stream *stream) { stream->capture->invalid = true; }

    void lose(Context *context, Result code, const std::string &sentence);

  private:
    bool ready(const Stream *stream) const;
    bool run_one();
    Result check_legacy(Stream *stream);
};

extern Streams streams;
extern thread_local CaptureMode thread_capture_mode;

} // namespace emulator
