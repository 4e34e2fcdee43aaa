// Counts over a group. A kernel that has these declares the constant THREADS, a multiple of 16, and calls them with all of
// them.

var<workgroup> scanned: array<u32, THREADS>;
var<workgroup> chunks: array<u32, 16>;

struct Place {
    // The sum of what the threads before this one have, and of all of them.
    before: u32,
    all: u32,
}

fn group_scan(n: u32, thread: u32) -> Place {
    const EACH = THREADS / 16u;
    scanned[thread] = n;
    workgroupBarrier();
    if (thread < 16u) {
        var sum = 0u;
        for (var i = thread * EACH; i < thread * EACH + EACH; i++) {
            let own = scanned[i];
            scanned[i] = sum;
            sum += own;
        }
        chunks[thread] = sum;
    }
    workgroupBarrier();
    var place = Place(scanned[thread], 0u);
    for (var chunk = 0u; chunk < 16u; chunk++) {
        place.before += select(0u, chunks[chunk], chunk < thread / EACH);
        place.all += chunks[chunk];
    }
    // The next one writes where this one was read.
    workgroupBarrier();
    return place;
}
