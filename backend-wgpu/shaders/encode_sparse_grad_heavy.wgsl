// Items with many rows: a group takes a slab of columns of one item after the other. Its threads stand in teams, each as
// wide as the slab in fours, and teams take rows in turn.

const LIST = 1024u;
// Words whose rows there is room for, however many they are.
const TILE = LIST / 32u;
// Fours of a slab.
const SLAB = 16u;

struct HeavyList {
    count: u32,
    unused: u32,
    items: array<Heavy>,
}

@group(1) @binding(6) var<storage, read> heavy: HeavyList;

var<workgroup> found: array<vec4<f32>, THREADS>;

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
    let slabs = (p.fours + SLAB - 1u) / SLAB;
    for (var task = number; task < heavy.count * slabs; task += p.groups) {
        let one = heavy.items[task / slabs];
        let slab = task % slabs * SLAB;
        let across = min(p.fours - slab, SLAB);
        let teams = THREADS / across;
        let team = thread / across;
        let four = slab + thread % across;
        let first = one.item * p.words;
        // All rows at once, or where there is no room for them, tile by tile.
        let tile = select(TILE, p.words, one.rows <= LIST);
        let each = (tile + THREADS - 1u) / THREADS;
        var sum = vec4<f32>();
        for (var word = 0u; word < p.words; word += tile) {
            let last = first + min(word + tile, p.words);
            let start = min(first + word + thread * each, last);
            let end = min(start + each, last);
            let mine = count_words(start, end);
            let place = group_scan(mine, thread);
            if (mine > 0u) {
                list_words(first, start, end, place.before);
            }
            workgroupBarrier();
            weigh(p.first_item + one.item, thread, place.all, THREADS);
            workgroupBarrier();
            if (team < teams) {
                sum += add_terms(team, place.all, teams, four);
            }
            workgroupBarrier();
        }
        found[thread] = sum;
        workgroupBarrier();
        if (thread < across) {
            for (var other = 1u; other < teams; other++) {
                sum += found[other * across + thread];
            }
            put(one.item, four, sum);
        }
        workgroupBarrier();
    }
}
