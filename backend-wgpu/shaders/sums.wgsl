// Sums over a group. A kernel that has these declares the constant THREADS, a multiple of 16, and calls them with all of
// them.

var<workgroup> parts: array<f32, THREADS>;

// The sum of what the threads have, by every thread, in the same order each time.
fn group_sum(x: f32, thread: u32) -> f32 {
    parts[thread] = x;
    workgroupBarrier();
    if (thread < 16u) {
        var sum = x;
        for (var other = thread + 16u; other < THREADS; other += 16u) {
            sum += parts[other];
        }
        parts[thread] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var part = 0u; part < 16u; part++) {
        sum += parts[part];
    }
    // The next one writes where this one was read.
    workgroupBarrier();
    return sum;
}
