// Items with few rows, eight to a group; those with many are put on a list, in whatever order.

const LANES = 32u;
// Rows that one item may have.
const MOST = 64u;
const LIST = MOST * (THREADS / LANES);

struct HeavyList {
    count: atomic<u32>,
    unused: u32,
    items: array<Heavy>,
}

@group(1) @binding(6) var<storage, read_write> heavy: HeavyList;

var<workgroup> counts: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups);
    if (number >= p.groups) {
        return;
    }
    let own = thread / LANES;
    let lane = thread % LANES;
    let item = number * (THREADS / LANES) + own;
    // A lane takes `each` words one after another; behind the last item there are none.
    let each = (p.words + LANES - 1u) / LANES;
    let first = item * p.words;
    let last = first + select(0u, p.words, item < p.items);
    let start = min(first + lane * each, last);
    let end = min(start + each, last);
    let mine = count_words(start, end);
    counts[thread] = mine;
    workgroupBarrier();
    var before = 0u;
    var n = 0u;
    for (var other = 0u; other < LANES; other++) {
        let count = counts[own * LANES + other];
        before += select(0u, count, other < lane);
        n += count;
    }
    let light = n <= MOST;
    if (light && mine > 0u) {
        list_words(first, start, end, own * MOST + before);
    }
    if (!light && lane == 0u) {
        heavy.items[atomicAdd(&heavy.count, 1u)] = Heavy(item, n);
    }
    workgroupBarrier();
    let own_list = own * MOST;
    if (light) {
        weigh(p.first_item + item, own_list + lane, own_list + n, LANES);
    }
    workgroupBarrier();
    if (!light || item >= p.items) {
        return;
    }
    for (var four = lane; four < p.fours; four += LANES) {
        put(item, four, add_terms(own_list, own_list + n, 1u, four));
    }
}
