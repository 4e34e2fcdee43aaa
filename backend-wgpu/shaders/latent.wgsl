// Fours that begin anywhere: the second half of the statistics does, where the number of units is no multiple of four.

// Which lanes of the four that begins at element `at` are in `start..end`.
struct Lanes {
    low: u32,
    high: u32,
}

fn lanes_in(at: u32, start: u32, end: u32) -> Lanes {
    return Lanes(max(at, start) - at, min(at + 4u, end) - at);
}

// The four that begins `by` elements behind the start of the first of two.
fn shifted(a: vec4<f32>, b: vec4<f32>, by: u32) -> vec4<f32> {
    switch by {
        case 1u: {
            return vec4<f32>(a.yzw, b.x);
        }
        case 2u: {
            return vec4<f32>(a.zw, b.xy);
        }
        case 3u: {
            return vec4<f32>(a.w, b.xyz);
        }
        default: {
            return a;
        }
    }
}

// Whether lanes of such a four are in the first of the two, and in the second: what is not needed may not be there.
fn in_first(lanes: Lanes, by: u32) -> bool {
    return lanes.low + by < 4u;
}

fn in_second(lanes: Lanes, by: u32) -> bool {
    return lanes.high + by > 4u;
}

// Some lanes of `now`, and the others of `old`.
fn merge_lanes(old: Four, now: Four, lanes: Lanes) -> Four {
    return merge_four(merge_four(old, now, lanes.high), old, lanes.low);
}
