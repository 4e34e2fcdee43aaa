#include "streams.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace emulator {

Streams streams;
thread_local CaptureMode thread_capture_mode = CaptureMode::global;

namespace {

constexpr size_t LONG_QUEUE = 64; // past this some of it is done without anybody waiting

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Adds work after the stream's last, as its new last.
void append(Stream *stream, const Work &work, const Condition &so) {
    Graph &graph = stream->capture->graph;
    graph.nodes.push_back({work, so, stream->last});
    stream->last = {u32(graph.nodes.size() - 1)};
}

} // namespace

Stream *Streams::create(Context *context, bool blocking, bool made_by_user) {
    Stream *stream = new Stream{context, blocking, made_by_user, {}, nullptr, {}};
    all.insert(stream);
    return stream;
}

void Streams::destroy(Stream *stream) {
    all.erase(stream);
    delete stream;
}

// Work on the legacy stream waits for all blocking streams, which a capture forbids.
Result Streams::check_legacy(Stream *stream) {
    if (stream != stream->context->legacy) return SUCCESS;
    Result result = SUCCESS;
    for (Stream *other : all) {
        if (other->context == stream->context && other->blocking && other->capture) {
            invalidate(other);
            result = CAPTURE_IMPLICIT;
        }
    }
    return result;
}

Result Streams::enqueue(Stream *stream, Work work, Condition so) {
    if (const Result result = check_legacy(stream)) return result;
    if (stream->capture) {
        if (stream->capture->invalid) return CAPTURE_INVALIDATED;
        append(stream, work, so);
        return SUCCESS;
    }
    stream->queue.push_back({++calls, std::move(work), std::move(so), nullptr, nullptr, 0});
    if (stream->queue.size() > LONG_QUEUE) run_some(random.below(LONG_QUEUE));
    return SUCCESS;
}

Result Streams::record(Stream *stream, const std::shared_ptr<Event> &event) {
    if (const Result result = check_legacy(stream)) return result;
    if (stream->capture) {
        if (stream->capture->invalid) return CAPTURE_INVALIDATED;
        event->capture = stream->capture;
        event->nodes = stream->last;
        return SUCCESS;
    }
    event->capture = nullptr;
    stream->queue.push_back({++calls, nullptr, nullptr, nullptr, event, ++event->recorded});
    return SUCCESS;
}

Result Streams::wait(Stream *stream, const std::shared_ptr<Event> &event) {
    if (const Result result = check_legacy(stream)) return result;
    if (event->capture) {
        if (event->capture->origin == nullptr) return CAPTURED_EVENT;
        if (event->capture->invalid) return CAPTURE_INVALIDATED;
        if (stream->capture == nullptr) {
            // A wait for captured work takes the stream into the capture.
            if (!stream->made_by_user) return CAPTURE_UNSUPPORTED;
            stream->capture = event->capture;
            stream->last.clear();
        } else if (stream->capture != event->capture) {
            invalidate(stream);
            event->capture->invalid = true;
            return CAPTURE_MERGE;
        }
        for (u32 node : event->nodes) {
            if (std::find(stream->last.begin(), stream->last.end(), node) == stream->last.end()) {
                stream->last.push_back(node);
            }
        }
        return SUCCESS;
    }
    if (stream->capture) {
        if (stream->capture->invalid) return CAPTURE_INVALIDATED;
        if (event->recorded == 0) return SUCCESS;
        invalidate(stream);
        return CAPTURE_ISOLATION;
    }
    if (event->done < event->recorded) {
        stream->queue.push_back({++calls, nullptr, nullptr, event, nullptr, event->recorded});
    }
    return SUCCESS;
}

// In one of the orders that the graph allows, taken anew at each launch.
Result Streams::launch_graph(Stream *stream, const Graph &graph) {
    const u32 count = u32(graph.nodes.size());
    std::vector<u32> missing(count);
    std::vector<std::vector<u32>> followers(count);
    std::vector<u32> free;
    for (u32 i = 0; i < count; ++i) {
        missing[i] = u32(graph.nodes[i].after.size());
        if (missing[i] == 0) free.push_back(i);
        for (u32 before : graph.nodes[i].after) followers[before].push_back(i);
    }
    while (!free.empty()) {
        const u32 chosen = random.below(u32(free.size()));
        const u32 node = free[chosen];
        free[chosen] = free.back();
        free.pop_back();
        if (const Result result = enqueue(stream, graph.nodes[node].work, graph.nodes[node].so)) return result;
        for (u32 follower : followers[node]) {
            if (--missing[follower] == 0) free.push_back(follower);
        }
    }
    return SUCCESS;
}

bool Streams::ready(const Stream *stream) const {
    if (stream->queue.empty()) return false;
    const Operation &next = stream->queue.front();
    if (next.waits && next.waits->done < next.generation && next.waits->context->lost == SUCCESS) return false;
    const Stream *legacy = stream->context->legacy;
    if (stream == legacy) {
        for (const Stream *other : all) {
            if (other != legacy && other->context == stream->context && other->blocking && !other->queue.empty() &&
                other->queue.front().number < next.number) {
                return false;
            }
        }
    } else if (stream->blocking && !legacy->queue.empty() && legacy->queue.front().number < next.number) {
        return false;
    }
    return !next.so || next.so();
}

// One operation of a stream that has one ready; none where no stream has.
bool Streams::run_one() {
    std::vector<Stream *> candidates;
    for (Stream *stream : all) {
        if (ready(stream)) candidates.push_back(stream);
    }
    if (candidates.empty()) return false;
    // By name and not by address, lest the choice depend on where memory lies.
    std::sort(candidates.begin(), candidates.end(),
              [](Stream *a, Stream *b) { return a->queue.front().number < b->queue.front().number; });
    Stream *stream = candidates[random.below(u32(candidates.size()))];
    const Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (operation.records) {
        operation.records->done = std::max(operation.records->done, operation.generation);
        operation.records->seconds = seconds();
    }
    if (operation.work) {
        const Fault fault = operation.work();
        if (fault.code != 0) lose(stream->context, Result(fault.code), fault.sentence);
    }
    return true;
}

void Streams::run_some(u32 operations) {
    while (operations-- > 0 && run_one()) {
    }
}

Result Streams::run_until(Context *context, const std::function<bool()> &so) {
    while (context->lost == SUCCESS && !so()) {
        if (run_one()) continue;
        const auto depends = [](Stream *stream) { return !stream->queue.empty() && stream->queue.front().so; };
        if (std::any_of(all.begin(), all.end(), depends)) {
            rest();
        } else {
            fprintf(stderr, "emulator: what is waited for can never come to pass\n");
            abort();
        }
    }
    return context->lost;
}

Result Streams::finish(Stream *stream) {
    return run_until(stream->context, [&] {
        // What the legacy stream has before it counts as part of it.
        if (stream != stream->context->legacy) return stream->queue.empty();
        return std::all_of(all.begin(), all.end(), [&](Stream *other) {
            return other->context != stream->context || !other->blocking || other->queue.empty();
        });
    });
}

Result Streams::finish_all(Context *context) {
    return run_until(context, [&] {
        return std::all_of(all.begin(), all.end(),
                           [&](Stream *stream) { return stream->context != context || stream->queue.empty(); });
    });
}

Result Streams::begin_capture(Stream *stream, CaptureMode mode) {
    if (!stream->made_by_user) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture = std::make_shared<Capture>(Capture{stream, mode, std::this_thread::get_id(), false, {}});
    stream->last.clear();
    return SUCCESS;
}

Result Streams::end_capture(Stream *stream, Graph *graph) {
    if (!stream->capture) return ILLEGAL_STATE;
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture->origin != stream) {
        capture->invalid = true;
        return CAPTURE_UNMATCHED;
    }
    if (capture->mode != CaptureMode::relaxed && capture->thread != std::this_thread::get_id()) {
        return CAPTURE_WRONG_THREAD;
    }
    // All that the origin's last work comes after; a node comes after earlier ones only.
    std::vector<bool> joined(capture->graph.nodes.size(), false);
    for (u32 node : stream->last) joined[node] = true;
    for (size_t i = joined.size(); i-- > 0;) {
        if (!joined[i]) continue;
        for (u32 before : capture->graph.nodes[i].after) joined[before] = true;
    }
    bool unjoined = false;
    for (Stream *other : all) {
        if (other->capture != capture) continue;
        for (u32 node : other->last) unjoined |= !joined[node];
        other->capture = nullptr;
        other->last.clear();
    }
    capture->origin = nullptr;
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (unjoined) return CAPTURE_UNJOINED;
    *graph = std::move(capture->graph);
    return SUCCESS;
}

Result Streams::may_call_unsafe() {
    if (thread_capture_mode == CaptureMode::relaxed) return SUCCESS;
    Result result = SUCCESS;
    for (Stream *stream : all) {
        if (!stream->capture) continue;
        const Capture &capture = *stream->capture;
        const bool own = capture.thread == std::this_thread::get_id() && capture.mode != CaptureMode::relaxed;
        const bool everywhere = thread_capture_mode == CaptureMode::global && capture.mode == CaptureMode::global;
        if (own || everywhere) {
            invalidate(stream);
            result = CAPTURE_UNSUPPORTED;
        }
    }
    return result;
}

void Streams::lose(Context *context, Result code, const std::string &sentence) {
    context->lost = code;
    last_fault = sentence;
    fprintf(stderr, "emulator: %s\n", sentence.c_str());
    for (Stream *stream : all) {
        if (stream->context == context) stream->queue.clear();
    }
}

} // namespace emulator
