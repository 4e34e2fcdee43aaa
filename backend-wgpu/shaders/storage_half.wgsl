// What activations and the weights that operations read are stored in: two halves a word.

// Four numbers, as they are stored.
alias Four = vec2<u32>;

fn wide(stored: Four) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(stored.x), unpack2x16float(stored.y));
}

// The half next to a number, the even one of two; infinite from halfway beyond the largest. The language leaves all of
// this to the device.
fn half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    var rest: u32;
    if (size > 0x7f800000u) {
        rest = 0x7e00u;
    } else if (size >= 0x477ff000u) {
        rest = 0x7c00u;
    } else if (size < 0x38800000u) {
        // Below 2^-14, in steps of 2^-24.
        rest = u32(round(bitcast<f32>(size) * 16777216.0));
    } else {
        rest = (size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u;
    }
    return ((bits >> 16u) & 0x8000u) | rest;
}

fn narrow(x: vec4<f32>) -> Four {
    return Four(half(x.x) | (half(x.y) << 16u), half(x.z) | (half(x.w) << 16u));
}

// The first `count` of `now`, and the rest of `old`.
fn merge_four(old: Four, now: Four, count: u32) -> Four {
    let x = select(select(old.x, (old.x & 0xffff0000u) | (now.x & 0xffffu), count == 1u), now.x, count >= 2u);
    let y = select(select(old.y, (old.y & 0xffff0000u) | (now.y & 0xffffu), count == 3u), now.y, count >= 4u);
    return Four(x, y);
}
